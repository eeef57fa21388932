"""Limits on the size of a YAML text, checked on the parser's events before any object is built."""

from __future__ import annotations

from typing import Any

import yaml

# A settings file has a few hundred nodes, four or five levels deep.
_MAX_NODES = 20_000
_MAX_CHARACTERS = 2**20
_MAX_DEPTH = 50
# libyaml's parser is about 20 times faster, but some builds of PyYAML lack it.
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class LimitError(yaml.MarkedYAMLError):
    """A YAML text that is too large, or an alias inside its own anchor."""


def check_limits(text: str) -> None:
    """Refuse a YAML text that is too large, also after its aliases are expanded.

    Each alias counts with the full size of its anchor.

    Args:
        text: The text.

    Raises:
        yaml.YAMLError: If it is not YAML, or exceeds a limit.
    """
    if len(text) > _MAX_CHARACTERS:
        raise LimitError(None, None, f"more than {_MAX_CHARACTERS} characters", None)
    # Nodes and characters of each open collection; the first entry is the whole text.
    open_sizes: list[tuple[int, int]] = [(0, 0)]
    open_anchors: list[str | None] = []
    sizes: dict[str, tuple[int, int]] = {}
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_sizes.append((1, 0))
            open_anchors.append(event.anchor)
            sizes.pop(event.anchor or "", None)
            if len(open_anchors) > _MAX_DEPTH:
                raise LimitError(None, None, f"more than {_MAX_DEPTH} levels", event.start_mark)  # type: ignore[arg-type]
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            size, anchor = open_sizes.pop(), open_anchors.pop()
        elif isinstance(event, yaml.ScalarEvent):
            size, anchor = (1, len(event.value)), event.anchor
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in open_anchors:
                message = f"the alias *{event.anchor} is inside its own anchor"
                raise LimitError(None, None, message, event.start_mark)  # type: ignore[arg-type]
            # The loader refuses an alias without an anchor.
            size, anchor = sizes.get(event.anchor or "", (1, 0)), None
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        nodes, characters = open_sizes[-1]
        open_sizes[-1] = nodes, characters = nodes + size[0], characters + size[1]
        if nodes > _MAX_NODES or characters > _MAX_CHARACTERS:
            raise LimitError(
                None,
                None,
                f"more than {_MAX_NODES} values or {_MAX_CHARACTERS} characters with aliases expanded",
                event.start_mark,  # type: ignore[arg-type]
            )
