"""The tuning of a study: what was tried for each group of arms, and what was chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from reptrain.report import plots
from reptrain.report.drawings import Drawing
from reptrain.study.tuning import TunedGroup
from reptrain.study.words import plain, readable_keys, settings_text


@dataclass(frozen=True)
class TuningLine:
    """One group of arms.

    Attributes:
        group: Label of the group.
        cells: (heading, value) pairs, the same headings in every line.
        note: What a reader should know about the choice; empty if nothing.
    """

    group: str
    cells: tuple[tuple[str, str], ...]
    note: str


def tuning_lines(groups: Sequence[TunedGroup]) -> list[TuningLine]:
    """A line for each group."""
    return [_line(group) for group in groups]


def _line(group: TunedGroup) -> TuningLine:
    names = readable_keys(group.keys)
    num_points = len(group.trials) // group.num_seeds
    chosen, loss = "–", "–"
    if group.best is not None:
        chosen = settings_text({key: group.best[key] for key in group.keys})
        loss = f"{min(group.means.values()):.3f}"
    tried = [" / ".join(plain(value) for value in values) for values in sorted(group.means, key=_ordered)]
    notes = [f"{names[key]} is at the edge of its range" for key in group.at_edge]
    if diverged := sum(math.isinf(mean) for mean in group.means.values()):
        notes.append(f"{diverged} of the values diverged")
    return TuningLine(
        group=group.label,
        cells=(
            ("chosen", chosen),
            ("selection loss", loss),
            ("values done", f"{len(group.means)} of {num_points}"),
            ("tried", ", ".join(tried) or "–"),
        ),
        note="; ".join(notes),
    )


def _ordered(values: tuple[object, ...]) -> list[tuple[float, str]]:
    return [(value, "") if isinstance(value, int | float) else (0.0, str(value)) for value in values]


def tuning_drawings(groups: Sequence[TunedGroup], command: str) -> list[Drawing]:
    """The selection loss against the tuned setting, if there is one number to tune."""
    rows = [
        {
            "group": group.label,
            "setting": group.keys[0],
            "value": float(value),
            "mean_select_nats": mean,
            "is_chosen": group.best is not None and group.best[group.keys[0]] == value,
        }
        for group in groups
        if len(group.keys) == 1
        for (value,), mean in sorted(group.means.items(), key=lambda item: _ordered(item[0]))
        if isinstance(value, int | float) and math.isfinite(mean)
    ]
    settings = {row["setting"] for row in rows}
    if len(rows) < 2 or len(settings) != 1:
        return []
    table = pa.Table.from_pylist(rows)
    labels = [*dict.fromkeys(table["group"].to_pylist())]
    return [
        Drawing(
            "tuning",
            "Selection loss of the tuning runs",
            partial(plots.tuning_curves, table),
            table,
            command,
            "Means over the seeds of the tuning runs. Ring: the chosen value.",
            plots.legend(labels),
        )
    ]
