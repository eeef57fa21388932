"""What an architecture of transformers is to us: its config, and its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reptrain.config.model import Activation, ModelConfig
from reptrain.errors import HubError
from reptrain.hub.keys import Keys
from reptrain.hub.parts import Part

Settings = Mapping[str, Any]
"""A config.json."""


@dataclass(frozen=True)
class Architecture:
    """One `model_type`."""

    model_type: str
    """Its name in config.json."""
    class_name: str
    """The class of transformers that has a head."""
    fits: Callable[[ModelConfig], bool]
    """Whether a model of ours is of this architecture, if of any."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """The settings of a model; refuses by name what they cannot say."""
    read: Callable[[Settings], ModelConfig]
    """The model of settings; refuses by name what we cannot build."""
    parts: Callable[[ModelConfig], Iterable[Part]]
    """The tensors of a model but for a tied head, as they are written."""
    keys: Keys
    """The keys of its config.json; `read` is given what `keys.complete` makes of one."""
    embedding: str
    """Name of the tensor that a tied head and other copies repeat."""
    prefix: str = ""
    """Of the names of the base class inside of the class with a head."""
    other_parts: Callable[[ModelConfig], Iterable[Part]] | None = None
    """The same tensors in another layout that folders may have."""
    copies: frozenset[str] = frozenset()
    """Names under which folders may repeat the embedding."""
    ignored: tuple[str, ...] = ()
    """Endings of names of tensors that mean nothing, in old folders."""
    repeats_embedding: Callable[[Settings], bool] = lambda settings: False
    """Whether a missing head is a copy of the embedding, where ours is not tied."""


def check_writable(rules: Mapping[str, tuple[bool, object, str]]) -> None:
    """Refuse by name the first setting of a model of ours that an architecture cannot express.

    Args:
        rules: By setting whether it holds, the value, and the rule in words.
    """
    for name, (holds, got, rule) in rules.items():
        if not holds:
            raise HubError(
                f"model.{name} of the model to export",
                got=got,
                rule=rule,
                remedy="transformers has no such model: use it from its run folder.",
            )


TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast")
"""Names of transformers for GELU in its tanh form."""
SILU = ("silu", "swish")
"""Names of transformers for SiLU."""


def activation(settings: Settings, key: str, ours: Mapping[tuple[str, ...], Activation]) -> Activation:
    """The activation that a key names.

    Args:
        settings: The config.json.
        key: The key.
        ours: By names of transformers, which they are here.

    Raises:
        HubError: If it is none of them.
    """
    for names, name in ours.items():
        if settings.get(key) in names:
            return name
    raise HubError(
        f"{key} in config.json",
        got=settings.get(key),
        rule=f"must be {' or '.join(name for names in ours for name in names)}",
        remedy="reptrain has no such model.",
    )


def number(settings: Settings, key: str, default: Any = None) -> Any:
    """A setting that must be there.

    Raises:
        HubError: If it is not, and there is no default.
    """
    value = settings.get(key)
    if value is None:
        value = default
    if value is None:
        raise HubError(
            f"{key} in config.json",
            got="nothing",
            rule="must be there",
            remedy="Restore the folder's config.json.",
        )
    return value
