"""Interleaved repetitions of several implementations, as rows."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from reptrain.bench.rows import OURS, ROOT, Row
from reptrain.errors import ReptrainError
from reptrain.runs.environment import processor

Measurement = Callable[[], float]
"""One repetition: returns its value in the metric's unit."""


class Metric(NamedTuple):
    """A quantity."""

    name: str
    unit: str
    larger_is_better: bool = True


class Missing(NamedTuple):
    """An implementation without a figure."""

    reason: str


class GateError(ReptrainError):
    """The implementations do not compute the same, so the benchmark has no result."""


def gate(passed: bool, *, bench: str, what: str, rule: str) -> None:
    """Stop a benchmark whose implementations do not compute the same.

    Raises:
        GateError: If ``passed`` is false.
    """
    if not passed:
        raise GateError(
            f"bench {bench}",
            got=f"another result from {what}",
            rule=rule,
            remedy="Fix the implementation: a benchmark reports results only if it agrees.",
        )


def interleaved(ways: Mapping[str, Measurement], repetitions: int) -> dict[str, list[float]]:
    """The values of each implementation. In every repetition all of them run, one after the other.

    Args:
        ways: Measurements by name.
        repetitions: Number of values of each, after one repetition that is not counted.
    """
    values: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(repetitions + 1):
        for name, measure in ways.items():
            value = measure()
            if repetition > 0:
                values[name].append(value)
    return values


def compared(
    bench: str,
    case: str,
    metric: Metric,
    ways: Mapping[str, Measurement | Missing],
    repetitions: int,
    *,
    packages: Mapping[str, Sequence[str]] | None = None,
    device: str = "cpu",
    threads: int = 1,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """Measure every implementation, interleaved.

    Args:
        bench: Name of the benchmark.
        case: What is measured.
        metric: The quantity.
        ways: Measurements by name, `OURS` among them; `Missing` for what cannot be measured.
        repetitions: Number of values of each.
        packages: Distributions whose versions go into an implementation's row, by name.
        device: "cpu", or the name of a GPU.
        threads: Threads or processes that each implementation may use.
        notes: What a figure leaves out, by name.

    Returns:
        One row for each implementation.
    """
    present = {name: way for name, way in ways.items() if not isinstance(way, Missing)}
    values = interleaved(present, repetitions)
    return [
        row_of(
            bench,
            case,
            name,
            metric,
            values.get(name, []),
            ours=values.get(OURS, []),
            note=way.reason if isinstance(way, Missing) else (notes or {}).get(name, ""),
            packages=(packages or {}).get(name, ()),
            device=device,
            threads=threads,
        )
        for name, way in ways.items()
    ]


def row_of(
    bench: str,
    case: str,
    what: str,
    metric: Metric,
    values: Sequence[float],
    *,
    ours: Sequence[float] = (),
    note: str = "",
    packages: Sequence[str] = (),
    device: str = "cpu",
    threads: int = 1,
) -> Row:
    """The row of measured values.

    Args:
        bench: Name of the benchmark.
        case: What was measured.
        what: Name of the implementation.
        metric: The quantity.
        values: One value per repetition; none for what could not be measured.
        ours: The values of `OURS` in the same repetitions.
        note: Why there are no values, or what they leave out.
        packages: Distributions whose versions go into the row.
        device: "cpu", or the name of a GPU.
        threads: Threads or processes that were used.
    """
    ratios = []
    if what != OURS and values and ours:
        pairs = list(zip(ours, values, strict=True))
        ratios = [a / b if metric.larger_is_better else b / a for a, b in pairs]
    return Row(
        bench,
        case,
        what,
        metric.name,
        metric.unit,
        *_summary(values),
        str(len(values)),
        *_summary(ratios),
        note,
        _commit(),
        _versions(tuple(packages)),
        processor() if device == "cpu" else device,
        str(threads),
        f"{datetime.now(UTC):%Y-%m-%d}",
    )


def median(values: Sequence[float]) -> float:
    """The median of values."""
    return statistics.median(values)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use a number of threads, and restore the former one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def installed(package: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _summary(values: Sequence[float]) -> tuple[str, str, str]:
    """Median, smallest and largest value, with four significant digits."""
    if not values:
        return "", "", ""
    return f"{statistics.median(values):.4g}", f"{min(values):.4g}", f"{max(values):.4g}"


@cache
def _versions(packages: tuple[str, ...]) -> str:
    known = [f"{name} {found}" for name in packages if (found := installed(name))]
    return ", ".join([f"python {platform.python_version()}", *known])


@cache
def _commit() -> str:
    """The short commit of this tree; "unknown" outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+changes", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def cores() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0))
