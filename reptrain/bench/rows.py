"""The rows of benchmarks/*.csv: one measured figure of one implementation each.

Every benchmark writes rows of this type, and docs/performance.md is built from them (`reptrain.bench.page`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
OURS = "reptrain"


class Row(NamedTuple):
    """A measured figure. Numbers are in the form that the CSV file holds."""

    bench: str
    """Name of the benchmark: data, tokenize, start or step."""
    case: str
    """What was measured: data, shapes and precision."""
    what: str
    """The implementation: `OURS` or an alternative."""
    metric: str
    """Name of the quantity, such as `tokens/s` or `time to the first batch`."""
    unit: str
    median: str
    low: str
    """Smallest value over the repetitions."""
    high: str
    """Largest value over the repetitions."""
    repetitions: str
    ratio: str
    """How many times faster (or smaller) `OURS` is than this implementation: the median over the
    repetitions, each within one repetition. Empty in the rows of `OURS`."""
    ratio_low: str
    ratio_high: str
    note: str
    """Why there is no figure, such as `not installed`; otherwise what the figure leaves out."""
    commit: str
    versions: str
    """Versions of Python and of the packages involved, such as `python 3.11.2, torch 2.13.0`."""
    device: str
    threads: str
    date: str
    """UTC, YYYY-MM-DD."""


def table(bench: str, folder: Path = FOLDER) -> Path:
    """The CSV file of a benchmark."""
    return folder / f"{bench}.csv"


def append(rows: Iterable[Row], path: Path) -> None:
    """Add rows to a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(Row._fields)
        writer.writerows(rows)


def read(path: Path) -> list[Row]:
    """All rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [Row(**row) for row in csv.DictReader(file)]


def latest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each (bench, case, what, metric), in the order of their first rows."""
    last = {(row.bench, row.case, row.what, row.metric): row for row in rows}
    return list(last.values())
