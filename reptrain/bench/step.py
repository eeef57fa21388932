"""Training steps next to other trainers."""

from __future__ import annotations

from reptrain.bench.rows import Row
from reptrain.errors import ReptrainError


def run(*, repetitions: int, quick: bool) -> list[Row]:
    """Measure training steps.

    Args:
        repetitions: Number of values of each implementation.
        quick: Whether to measure the smallest sizes only.
    """
    raise ReptrainError(
        "bench step",
        got="no measurement",
        rule="is not implemented",
        remedy="Measure a run's tokens/s with `reptrain train`.",
    )
