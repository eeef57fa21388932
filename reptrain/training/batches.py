"""Batches addressed by step: what the training loop takes, and those of pre-training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from reptrain.batch.collate import MicroBatch
from reptrain.batch.loader import Loader
from reptrain.config.scheduled import RunPosition
from reptrain.plan.position import position_at


@dataclass(frozen=True)
class Batch:
    """One rank's share of an optimizer step, and the position of the step in the training."""

    position: RunPosition
    """Where the step begins."""
    first_index: int
    """Global index of the step's first window; in fine-tuning, of its first example."""
    windows: int
    """Windows, or examples, of the step over all ranks."""
    tokens: int
    """How far the step advances ``position.tokens``: raw tokens; in fine-tuning, examples."""
    micro_batches: Sequence[MicroBatch]
    """As many on every rank as DeepSpeed accumulates."""
    loss_tokens: int
    """Divisor of the step's nats, summed over all ranks."""

    @property
    def step(self) -> int:
        """Number of the step, from 0."""
        return self.position.step


class Batches(Protocol):
    """The batches of a training. They depend on the step alone, so a resumed training needs no state."""

    def iterate(self, first_step: int) -> Iterator[Batch]:
        """Yield the batches from ``first_step`` to the last step."""


@dataclass(frozen=True)
class WindowBatches:
    """The batches of pre-training: windows of the plan, in its order.

    Args:
        loader: Builds the micro-batches ahead of time.
    """

    loader: Loader

    def iterate(self, first_step: int) -> Iterator[Batch]:
        """Yield the batches from ``first_step`` to the last step."""
        plan, steps = self.loader.plan, self.loader.steps
        for share in self.loader.iterate(first_step):
            position = position_at(plan, steps, share.step)
            first, windows = steps.window_range(share.step)
            tokens = plan.tokens_before(first + windows) - position.tokens
            yield Batch(position, first, windows, tokens, share.micro_batches, share.loss_tokens)
