"""What distinguishes the arms of a study, if the values of an axis are mappings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reptrain.config.fingerprint import flatten

Values = Mapping[str, Any]


def brief_values(shown: Sequence[Values], written: Sequence[Values]) -> list[dict[str, Any]]:
    """The values of the axes of each arm; a mapping is replaced by its settings that differ between arms.

    An axis ``model`` with the values ``{d_model: 64, bias: false}`` and ``{d_model: 128, bias: false}``
    gives ``{"model.d_model": 64}`` and ``{"model.d_model": 128}``.

    Args:
        shown: The value of each axis of each arm, with defaults filled in.
        written: The same values as the study file has them. Other settings are not needed to tell arms apart,
            unless a constraint changes them.
    """
    axes = dict.fromkeys(axis for values in shown for axis, value in values.items() if _is_mapping(value))
    differing = {axis: _differing(axis, shown, written) for axis in axes}
    return [
        {
            key: setting
            for axis, value in values.items()
            for key, setting in (
                _settings(axis, value, differing[axis]) if _is_mapping(value) else {axis: value}
            ).items()
        }
        for values in shown
    ]


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _settings(axis: str, value: Values, keys: Sequence[str]) -> dict[str, Any]:
    flat = dict(flatten(value))
    return {f"{axis}.{key}": flat[key] for key in keys if key in flat}


def _differing(axis: str, shown: Sequence[Values], written: Sequence[Values]) -> list[str]:
    """The settings of an axis that tell its mappings apart."""
    flat = [dict(flatten(values[axis])) for values in shown if _is_mapping(values.get(axis))]
    named = dict.fromkeys(
        key for values in written if _is_mapping(values.get(axis)) for key, _ in flatten(values[axis])
    )
    all_keys = dict.fromkeys(key for one in flat for key in one)
    differing = [key for key in all_keys if len({repr(one.get(key)) for one in flat}) > 1]
    if not differing:
        return [*named]
    brief = [key for key in differing if key in named]
    return brief if _num_different(flat, brief) == _num_different(flat, differing) else differing


def _num_different(values: Sequence[Values], keys: Sequence[str]) -> int:
    return len({repr([one.get(key) for key in keys]) for one in values})
