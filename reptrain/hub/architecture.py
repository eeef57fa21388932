"""Architectures of transformers: conversion of their configuration and tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reptrain.config.model import Activation, ModelConfig
from reptrain.errors import HubError
from reptrain.hub.keys import Keys
from reptrain.hub.parts import Part

Settings = Mapping[str, Any]
"""Content of a config.json."""


@dataclass(frozen=True)
class Architecture:
    """One `model_type` of transformers."""

    model_type: str
    """Name in config.json."""
    class_name: str
    """The transformers class with an output head."""
    fits: Callable[[ModelConfig], bool]
    """Whether a model of ours is written as this architecture."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """Converts our configuration to settings of config.json; raises HubError for what they cannot express."""
    read: Callable[[Settings], ModelConfig]
    """Converts completed settings to our configuration; raises HubError for what is not supported."""
    parts: Callable[[ModelConfig], Iterable[Part]]
    """The tensors of a model as they are written, without a tied head."""
    keys: Keys
    """The keys of config.json; `keys.complete` prepares the settings for `read`."""
    embedding: str
    """Name of the embedding's tensor, which a tied head copies."""
    prefix: str = ""
    """Prefix of the base class's tensor names in the class with a head."""
    other_parts: Callable[[ModelConfig], Iterable[Part]] | None = None
    """The tensors in an alternative layout that folders may have."""
    copies: frozenset[str] = frozenset()
    """Names of further copies of the embedding that folders may have."""
    ignored: tuple[str, ...] = ()
    """Name endings of tensors that are not weights, in old folders."""
    repeats_embedding: Callable[[Settings], bool] = lambda settings: False
    """Whether a missing head is a copy of the embedding although ours is not tied."""


def check_writable(rules: Mapping[str, tuple[bool, object, str]]) -> None:
    """Refuse the first setting of our model that an architecture cannot express.

    Args:
        rules: For each setting: whether its rule holds, its value, and the rule as text.

    Raises:
        HubError: If a rule does not hold.
    """
    for name, (holds, got, rule) in rules.items():
        if not holds:
            raise HubError(
                f"model.{name} of the model to export",
                got=got,
                rule=rule,
                remedy="transformers has no such model; use it from its run folder.",
            )


TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast")
"""transformers' names for the tanh approximation of GELU."""
SILU = ("silu", "swish")
"""transformers' names for SiLU."""


def activation(settings: Settings, key: str, ours: Mapping[tuple[str, ...], Activation]) -> Activation:
    """Our activation for a key of config.json.

    Args:
        settings: Content of config.json.
        key: The key.
        ours: Our activation for each group of transformers' names.

    Raises:
        HubError: If the activation is not supported.
    """
    for names, name in ours.items():
        if settings.get(key) in names:
            return name
    raise HubError(
        f"{key} in config.json",
        got=settings.get(key),
        rule=f"must be {' or '.join(name for names in ours for name in names)}",
        remedy="reptrain does not support this model.",
    )


def number(settings: Settings, key: str, default: Any = None) -> Any:
    """The value of a required key.

    Raises:
        HubError: If it is missing and there is no default.
    """
    value = settings.get(key)
    if value is None:
        value = default
    if value is None:
        raise HubError(
            f"{key} in config.json",
            got="nothing",
            rule="must be set",
            remedy="Restore the folder's config.json.",
        )
    return value
