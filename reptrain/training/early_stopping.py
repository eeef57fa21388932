"""Early stopping when the held-out loss no longer improves."""

from __future__ import annotations

from collections.abc import Sequence

from reptrain.runs.metrics import MetricsLog


class Patience:
    """Counts evaluations without improvement on the selection split.

    Args:
        limit: Consecutive evaluations without improvement that end the run; None never ends it.
        seen: Losses of earlier evaluations, in order.
    """

    def __init__(self, limit: int | None, seen: Sequence[float] = ()) -> None:
        self._limit = limit
        self._best = float("inf")
        self._without = 0
        for nats in seen:
            self.add(nats)

    def add(self, nats: float) -> None:
        """Add the loss of one more evaluation."""
        is_better = nats < self._best
        self._best = min(self._best, nats)
        self._without = 0 if is_better else self._without + 1

    @property
    def is_over(self) -> bool:
        """Whether the run should end."""
        return self._limit is not None and self._without >= self._limit

    def __str__(self) -> str:
        return f"select did not improve on {self._best:.4f} nats for {self._without} evaluations"


def select_losses(metrics: MetricsLog, name: str) -> list[float]:
    """Losses of a selection split with the run's own weights, in the order of the file."""
    records = metrics.records("valid")
    return [record.nats for record in records if record.set == name and record.weights == "own"]
