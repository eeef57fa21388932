"""Audit, verify, report and fit, next to other ways."""

from __future__ import annotations

from reptrain.bench.rows import Row


def run(*, repetitions: int, quick: bool) -> list[Row]:
    """Measure.

    Args:
        repetitions: Number of values of each implementation.
        quick: Whether to measure fewer cases.
    """
    return []
