"""What a YAML text may cost to read: checked on its events, before anything is built of them."""

from __future__ import annotations

from typing import Any

import yaml

# A settings file has a few hundred nodes, four or five levels deep.
_MOST_NODES = 20_000
_MOST_CHARACTERS = 2**20
_DEEPEST = 50
# libyaml's parser is about 20 times faster; a PyYAML built without it lacks the name.
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class LimitError(yaml.MarkedYAMLError):
    """A YAML text that is too large, or that names itself."""


def check_limits(text: str) -> None:
    """Refuse a YAML text that takes long to read, or that stands for far more than it shows.

    An alias counts as all that its anchor holds, as often as it is named.

    Args:
        text: The text.

    Raises:
        yaml.YAMLError: If it is no YAML or beyond a limit.
    """
    if len(text) > _MOST_CHARACTERS:
        raise LimitError(None, None, f"more than {_MOST_CHARACTERS} characters", None)
    # Nodes and characters within each open collection; the first stands for the whole text.
    open_sizes: list[tuple[int, int]] = [(0, 0)]
    open_anchors: list[str | None] = []
    sizes: dict[str, tuple[int, int]] = {}
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_sizes.append((1, 0))
            open_anchors.append(event.anchor)
            sizes.pop(event.anchor or "", None)
            if len(open_anchors) > _DEEPEST:
                raise LimitError(None, None, f"more than {_DEEPEST} levels", event.start_mark)  # type: ignore[arg-type]
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            size, anchor = open_sizes.pop(), open_anchors.pop()
        elif isinstance(event, yaml.ScalarEvent):
            size, anchor = (1, len(event.value)), event.anchor
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in open_anchors:
                raise LimitError(None, None, f"*{event.anchor} within itself", event.start_mark)  # type: ignore[arg-type]
            # One without an anchor is refused by the loader.
            size, anchor = sizes.get(event.anchor or "", (1, 0)), None
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        nodes, characters = open_sizes[-1]
        open_sizes[-1] = nodes, characters = nodes + size[0], characters + size[1]
        if nodes > _MOST_NODES or characters > _MOST_CHARACTERS:
            raise LimitError(
                None,
                None,
                f"more than {_MOST_NODES} values or {_MOST_CHARACTERS} characters, aliases written out",
                event.start_mark,  # type: ignore[arg-type]
            )
