"""Labels of arms, settings and numbers, for tables, figures and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from reptrain.config.fingerprint import flatten

if TYPE_CHECKING:
    from reptrain.study.collect import ArmRow

_UNIQUE = "data.unique_tokens"


def label(row: ArmRow, *, seeds: bool = False) -> str:
    """An arm in words: ``16 epochs of 65,536 tokens``, or its axes: ``d_model 128, dropout.residual 0.1``.

    Args:
        row: The arm.
        seeds: Whether to include the seed.
    """
    parts = [str(row.values["arm"])] if "arm" in row.values else []
    shows_epochs = bool((_UNIQUE in row.values or not row.values) and row.unique_tokens and row.epochs)
    if shows_epochs:
        unit = "epoch" if row.epochs == 1 else "epochs"
        parts.append(f"{plain(row.epochs)} {unit} of {plain(row.unique_tokens)} tokens")
    others = [key for key in row.values if key != "arm" and not (shows_epochs and key == _UNIQUE)]
    if others:
        parts.append(settings_text({key: row.values[key] for key in others}))
    if seeds:
        parts.append(f"seed {row.seed}")
    return ", ".join(parts) or row.arm


def settings_text(values: Mapping[str, Any]) -> str:
    """Settings in words: ``{"model.d_model": 1024, "objective.name": "causal"}`` gives
    ``d_model 1,024, objective causal``."""
    names = readable_keys(values)
    return ", ".join(f"{names[key]} {plain(value)}" for key, value in values.items())


def readable_keys(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key without its section, or whole if two keys would be equal.

    ``model.dropout.residual`` gives ``dropout.residual``, and ``objective.name`` gives ``objective``.
    """
    short = {key: key.partition(".")[2].removesuffix(".name") or key for key in keys}
    short = {key: key.removesuffix(".name") if name == "name" else name for key, name in short.items()}
    times = Counter(short.values())
    return {key: name if times[name] == 1 else key for key, name in short.items()}


def hash_lines(hashed: Mapping[str, str]) -> list[str]:
    """A line for each hash in the names of arms, with the settings behind it (`hashed_settings`)."""
    return [f"{name}: {settings}" for name, settings in hashed.items()]


def plain(value: Any) -> str:
    """A value in readable form: ``65,536``, ``0.1``, ``2.5``, ``on``, ``null``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"
    if isinstance(value, dict):
        return " ".join(f"{key}={plain(item)}" for key, item in flatten(value))
    return str(value)
