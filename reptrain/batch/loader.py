"""The data loader: a stateless map from the step to a rank's micro-batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reptrain.batch.collate import collate, noise_places
from reptrain.batch.micro_batch import MicroBatch
from reptrain.batch.objectives.example import Objective
from reptrain.plan import MixturePlan, StepPlan, Stream
from reptrain.plan.shard import rank_rows


class StepBatch(NamedTuple):
    """A rank's share of one optimizer step's batch."""

    step: int
    micro_batches: list[MicroBatch]
    loss_tokens: int
    """Divisor of the step's loss, summed in nats over all ranks."""


@dataclass(frozen=True)
class Loader:
    """A rank's batches as a function of the step.

    Args:
        stream: The tokens.
        plan: Maps global indices to windows.
        steps: Maps steps to global indices.
        objective: Draws the noise.
        rank: Data-parallel rank of this process, below ``world_size``.
        world_size: Number of data-parallel processes.
        micro_batch_windows: Rows of one forward pass.
        pin: Whether to copy the batches to page-locked memory.
    """

    stream: Stream
    plan: MixturePlan
    steps: StepPlan
    objective: Objective
    rank: int
    world_size: int
    micro_batch_windows: int
    pin: bool = False

    def batch(self, step: int) -> StepBatch:
        """The rank's micro-batches of a step; all ranks get the same number."""
        first, count = self.steps.window_range(step)
        rows_MB = rank_rows(
            self.steps.batch_windows,
            rank=self.rank,
            world_size=self.world_size,
            micro_batch_windows=self.micro_batch_windows,
        )
        index_MB = np.where(rows_MB < count, first + rows_MB, -1)
        micro_batches = [
            collate(self.stream, self.plan, self.objective, index_B, row_B)
            for index_B, row_B in zip(index_MB, rows_MB, strict=True)
        ]
        return StepBatch(
            step,
            [mb.pin() for mb in micro_batches] if self.pin else micro_batches,
            self.objective.loss_tokens(noise_places(self.plan, np.arange(first, first + count))),
        )

    def iterate(self, first_step: int = 0, *, ahead: int = 2) -> Iterator[StepBatch]:
        """Yield the batches from ``first_step`` to the last step, prefetched by a thread.

        Args:
            first_step: Step of the first batch.
            ahead: Number of steps to prefetch.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            pending = deque(
                pool.submit(self.batch, step)
                for step in range(first_step, min(first_step + ahead, self.steps.num_steps))
            )
            next_step = first_step + len(pending)
            while pending:
                batch = pending.popleft().result()
                if next_step < self.steps.num_steps:
                    pending.append(pool.submit(self.batch, next_step))
                    next_step += 1
                yield batch
