"""Batches addressed by step alone: the loader has no state to save."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reptrain.batch.collate import MicroBatch, collate, noise_places
from reptrain.batch.objectives.example import Objective
from reptrain.plan import MixturePlan, StepPlan, Stream
from reptrain.plan.shard import rank_rows


class StepBatch(NamedTuple):
    """A rank's share of one optimizer step."""

    step: int
    micro_batches: list[MicroBatch]
    loss_tokens: int
    """What the step's nats over all ranks are divided by."""


@dataclass(frozen=True)
class Loader:
    """A rank's batches as a function of the step.

    Args:
        stream: The stream of tokens.
        plan: Which window comes at which global index.
        steps: Which global indices form a step.
        objective: Draws the noise.
        rank: This process's place among ``world_size``.
        world_size: Data-parallel processes.
        micro_batch_windows: Rows of one forward pass.
        pin: Whether to place the batches in page-locked memory.
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
        """The rank's micro-batches of a step; the number of them is the same on all ranks."""
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
        """Batches from ``first_step`` to the end, built up to ``ahead`` steps early by a thread."""
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
