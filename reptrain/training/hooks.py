"""What pre-training and fine-tuning each do around the steps of the one training loop."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple, Protocol

from reptrain.training.batches import Batch
from reptrain.training.step import StepResult


class Request(NamedTuple):
    """What an evaluation asks the loop to do."""

    save: bool = False
    """Save a checkpoint."""
    stop: str | None = None
    """Save a checkpoint and end the training, for this reason."""


class Hooks(Protocol):
    """Called by the loop on every rank."""

    @property
    def evaluate_at(self) -> Set[int]:
        """Numbers of completed steps at which to evaluate."""

    @property
    def save_at(self) -> Set[int]:
        """Numbers of completed steps at which to save."""

    def record(self, batch: Batch, result: StepResult, *, lr: float, seconds: float) -> None:
        """Record an attempt at a step, applied or not."""

    def not_finite(self, batch: Batch, result: StepResult) -> None:
        """Raise, or skip the step: its loss or gradient is not finite."""

    def evaluate(self, step: int) -> Request:
        """Evaluate after ``step`` completed steps."""

    def save(self, step: int) -> None:
        """Save a checkpoint after ``step`` completed steps."""
