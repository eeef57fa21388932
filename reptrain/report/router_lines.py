"""The routers of a study's sparse runs, as `reptrain routers` recorded them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from reptrain.report import plots
from reptrain.report.drawings import Drawing
from reptrain.runs.folder import RunFolder
from reptrain.runs.routers import RouterRecord
from reptrain.study.collect import ArmRow
from reptrain.study.paths import run_path
from reptrain.study.words import label

_UNKNOWN = "–"
_NOT_READ = ("waiting", "other config", "other numerics")


@dataclass(frozen=True)
class RouterLine:
    """One sparse layer of a run.

    Attributes:
        label: Label of the run.
        cells: (heading, value) pairs, the same headings in every line.
    """

    label: str
    cells: tuple[tuple[str, str], ...]


def read_routers(rows: Sequence[ArmRow], out: Path) -> dict[str, list[RouterRecord]]:
    """The records of each run, by the name of the run, unless it has taken steps since.

    Args:
        rows: The table of the study.
        out: Its folder.

    Raises:
        RunError: Naming the first invalid line.
    """
    folders = {row.arm: RunFolder(run_path(out, row.arm)) for row in rows if row.state not in _NOT_READ}
    found = {run: list(folder.routers.records()) for run, folder in folders.items()}
    return {
        run: records
        for run, records in found.items()
        if records and records[-1].final_step >= (folders[run].status().step or 0)
    }


def router_lines(rows: Sequence[ArmRow], routers: Mapping[str, Sequence[RouterRecord]]) -> list[RouterLine]:
    """A line for each sparse layer of each run, at its last checkpoint."""
    several = len({row.seed for row in rows}) > 1
    return [
        RouterLine(label(row, seeds=several), _cells(record, routers[row.arm]))
        for row in rows
        for record in routers.get(row.arm, ())
        if record.step == record.final_step
    ]


def _cells(last: RouterRecord, records: Sequence[RouterRecord]) -> tuple[tuple[str, str], ...]:
    earlier = [one for one in records if one.layer == last.layer and one.step < last.step]
    half = [one for one in earlier if 2 * one.tokens >= last.tokens]
    return (
        ("layer", last.layer),
        ("checkpoints", f"{len(earlier) + 1}"),
        ("agreement from half-way", f"{half[0].agreement:.1%}" if half else _UNKNOWN),
        ("dead experts", f"{last.dead}"),
        ("knock-out, mean", _nats(last.knock_out_mean_nats)),
        ("knock-out, largest", _nats(last.knock_out_max_nats)),
        ("of expert", _UNKNOWN if last.worst_expert is None else f"{last.worst_expert}"),
    )


def _nats(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.4f}"


def router_drawings(
    rows: Sequence[ArmRow],
    routers: Mapping[str, Sequence[RouterRecord]],
    runs: pa.Table,
    names: Mapping[str, str],
    command: str,
) -> list[Drawing]:
    """Agreement with the final router against tokens; none without several checkpoints of a run.

    Args:
        rows: The table of the study.
        routers: Records by the name of the run.
        runs: The table of main runs.
        names: Label of each arm.
        command: The command that gives the data.
    """
    arms = dict(zip(runs["run"].to_pylist(), runs["arm"].to_pylist(), strict=True))
    points: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in rows:
        steps: dict[int, list[RouterRecord]] = {}
        for record in routers.get(row.arm, ()):
            steps.setdefault(record.step, []).append(record)
        if len(steps) > 1 and row.arm in arms:
            for layers in steps.values():
                agreement = statistics.fmean(layer.agreement for layer in layers)
                at = (arms[row.arm], layers[0].tokens)
                points.setdefault(at, []).append((layers[0].epoch, agreement))
    if not points:
        return []
    table = pa.Table.from_pylist(
        [
            {
                "arm": arm,
                "consumed_tokens": tokens,
                "epoch": found[0][0],
                "agreement": statistics.fmean(agreement for _, agreement in found),
                "lowest": min(agreement for _, agreement in found),
                "highest": max(agreement for _, agreement in found),
                "seeds": len(found),
            }
            for (arm, tokens), found in sorted(points.items())
        ]
    )
    return [
        Drawing(
            "router-agreement",
            "Agreement with the final router against tokens seen",
            partial(plots.curves_over_tokens, table, names, what=plots.AGREEMENT),
            table,
            command,
            "Share of tokens of the training windows with the same first expert as at the last checkpoint, a"
            " mean over the sparse layers. Means over the seeds, with their range.",
            plots.legend([names[arm] for (arm,) in plots.by_arm(table, names)]),
        )
    ]
