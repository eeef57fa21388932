"""Labels of the groups of arms that are tuned separately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reptrain.study.arm import Arm
from reptrain.study.point import EPOCHS
from reptrain.study.words import plain, settings_text


def group_labels(groups: Sequence[Sequence[Arm]], at: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label for each group: its entries and settings that other groups do not have.

    Args:
        groups: The arms of each group.
        at: The values of `tune.at` of each group.
    """
    entries = [" and ".join(dict.fromkeys(arm.point.entry.name for arm in group)) for group in groups]
    shared = [_shared(group) for group in groups]
    labels = []
    for place, values in enumerate(at):
        parts = [entries[place]] if len({*entries}) > 1 else ["all arms"] if len(groups) == 1 else []
        own = {
            key: value
            for key, value in shared[place].items()
            if key not in values and any(other.get(key) != value for other in shared)
        }
        parts += [settings_text(own)] if own else []
        parts += [_at(values)] if values else []
        labels.append(", ".join(parts))
    return labels


def _shared(group: Sequence[Arm]) -> dict[str, Any]:
    """The settings that all arms of a group share."""
    first, *others = (arm.brief for arm in group)
    return {
        key: value
        for key, value in first.items()
        if key != "arm" and all(other.get(key, _MISSING) == value for other in others)
    }


_MISSING = object()


def _at(values: Mapping[str, Any]) -> str:
    epochs = [f"{plain(value)} epoch{'s' * (value != 1)}" for key, value in values.items() if key == EPOCHS]
    others = {key: value for key, value in values.items() if key != EPOCHS}
    return "at " + ", ".join([*epochs, *([settings_text(others)] if others else [])])
