"""The tables of docs/paper.md: losses by size and epochs, and each recent method against the plain arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reptrain.analysis.intervals import SeedMeans
from reptrain.analysis.questions import FEWEST_SEEDS
from reptrain.analysis.tables import main_runs

PLAIN = "plain"
_FINAL, _BEST = "loss_report_final_nats", "loss_report_best_nats"
_SNAPSHOTS = "snapshots.report.loss_nats"
_HEAD = f"""\
| arm | seeds | final loss | minus `{PLAIN}` | best loss | minus `{PLAIN}` |
|---|---:|---:|---|---:|---|"""
_NOTE = f"""\
Losses in nats per token on the report split, means over seeds. The differences are paired by seed; their 95%
intervals are not corrected for the number of arms. The best loss is that of the evaluation that is lowest on
the selection split. Weighted snapshots are compared with the final and the best loss of `{PLAIN}`."""

_Losses = Mapping[int, float]
"""A loss by seed."""


def losses_table(runs: pa.Table) -> list[str]:
    """Lines of Markdown: the final loss, and the best one in parentheses, for each size and number of epochs.

    Args:
        runs: The finished main runs of a study whose arms are sizes of the model.
    """
    cells: dict[tuple[int, float], list[tuple[float, float]]] = {}
    for row in runs.to_pylist():
        place = row["parameters_nonembedding"], row["epochs"]
        cells.setdefault(place, []).append((row[_FINAL], row[_BEST]))
    sizes, epochs = (sorted({place[i] for place in cells}) for i in (0, 1))
    lines = [
        f"| non-embedding parameters |{''.join(f' R = {number:g} |' for number in epochs)}",
        f"|---:|{'---:|' * len(epochs)}",
    ]
    for size in sizes:
        shown = [_mean_losses(cells.get((size, number), [])) for number in epochs]
        lines.append(f"| {size:,} | {' | '.join(shown)} |")
    return lines


def _mean_losses(pairs: Sequence[tuple[float, float]]) -> str:
    if not pairs:
        return ""
    final, best = np.mean(pairs, axis=0)
    return f"{final:.2f} ({best:.2f})"


def methods_table(runs: pa.Table) -> list[str]:
    """Lines of Markdown; none without a finished run of the plain arm.

    Args:
        runs: The table of a study whose arms have names (`set.entry`).
    """
    done = main_runs(runs)
    rows = done.filter(pc.equal(done["status"], "done")).to_pylist()
    names = list(dict.fromkeys(row["set.entry"] for row in rows))
    if PLAIN not in names:
        return []
    final, best = ({name: _by_seed(rows, name, column) for name in names} for column in (_FINAL, _BEST))
    plain = final[PLAIN], best[PLAIN]
    lines = [_HEAD]
    for name in names:
        lines.append(_row(name, final[name], best[name], *plain))
        snapshots = _by_seed(rows, name, _SNAPSHOTS)
        if snapshots:
            lines.append(_row(f"{name}, weighted snapshots", snapshots, snapshots, *plain))
    return [*lines, "", _NOTE]


def _by_seed(rows: Sequence[Mapping[str, Any]], name: str, column: str) -> _Losses:
    chosen = [row for row in rows if row["set.entry"] == name and row.get(column) is not None]
    return {row["seed"]: row[column] for row in chosen}


def _row(name: str, final: _Losses, best: _Losses, plain_final: _Losses, plain_best: _Losses) -> str:
    parts = [
        part
        for losses, plain in ((final, plain_final), (best, plain_best))
        for part in (f"{np.mean([*losses.values()]):.3f}", _difference(losses, plain))
    ]
    return f"| {name} | {len(final)} | {' | '.join(parts)} |"


def _difference(losses: _Losses, plain: _Losses) -> str:
    """The mean difference over the seeds that both have, with its interval if these are enough."""
    paired = np.array([losses[seed] - plain[seed] for seed in sorted({*losses} & {*plain})])
    if losses is plain or not len(paired):
        return ""
    if len(paired) < FEWEST_SEEDS or np.ptp(paired) == 0:
        return f"{paired.mean():+.3f}"
    low, high = SeedMeans.of(paired).interval(np.array([0.05]))
    return f"{paired.mean():+.3f} [{low[0]:+.3f}, {high[0]:+.3f}]"
