"""Labels of arms and numbers, for tables, figures and the verdict."""

from __future__ import annotations

from typing import Any

from reptrain.study.collect import ArmRow
from reptrain.study.grid import short_keys

_UNIQUE = "data.unique_tokens"


def label(row: ArmRow, *, seeds: bool = False) -> str:
    """An arm in words: ``16 epochs of 65,536 tokens``, or its axes: ``d_model 128, residual 0.1``.

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
    short = short_keys(others)
    parts += [f"{short[key]} {plain(row.values[key])}" for key in others]
    if seeds:
        parts.append(f"seed {row.seed}")
    return ", ".join(parts) or row.arm


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
        return " ".join(f"{key}={plain(item)}" for key, item in value.items())
    return str(value)
