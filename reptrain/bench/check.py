"""Compare new measurements with the recorded ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from reptrain.bench import data, proof, start, step, tokenize
from reptrain.bench.rows import Row, latest, read, table

RUNS: dict[str, Callable[..., Iterable[Row]]] = {
    "data": data.run,
    "start": start.run,
    "tokenize": tokenize.run,
    "step": step.run,
    "proof": proof.run,
}


def regressions(*, repetitions: int, quick: bool) -> Iterator[str]:
    """Measure every benchmark that has recorded rows, and describe each ratio that got worse.

    Args:
        repetitions: Number of values of each implementation.
        quick: Whether to measure fewer cases.
    """
    for bench, run in RUNS.items():
        recorded = latest(read(table(bench)))
        if recorded:
            yield from worse(recorded, run(repetitions=repetitions, quick=quick))


def worse(recorded: Iterable[Row], found: Iterable[Row]) -> Iterator[str]:
    """Describe the ratios of new rows whose whole range is below the recorded range.

    The figures are not compared: they depend on the machine and its load.

    Args:
        recorded: Recorded rows.
        found: New rows.
    """
    new = {(row.bench, row.case, row.what, row.metric): row for row in found if row.ratio}
    for old in recorded:
        row = new.get((old.bench, old.case, old.what, old.metric))
        if row is not None and old.ratio and float(row.ratio_high) < float(old.ratio_low):
            yield (
                f"{row.bench}, {row.case}: {row.metric} is {row.ratio} ({row.ratio_low} to {row.ratio_high})"
                f" times that of {row.what}, where {old.ratio} ({old.ratio_low} to {old.ratio_high}) is on"
                " record"
            )
