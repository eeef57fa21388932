"""The data loader: a stateless map from the step to a rank's micro-batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np

from reptrain.batch.collate import collate_windows, places_of
from reptrain.batch.micro_batch import MicroBatch
from reptrain.batch.objectives.example import Objective
from reptrain.plan import MixturePlan, StepPlan, Stream
from reptrain.plan.epochs import Int64s, Windows
from reptrain.plan.shard import micro_steps_of, rank_rows

# Tokens per read, 8 MiB of int64: the overhead of the calls is small compared with the read.
_BLOCK_TOKENS = 1 << 20
_LOCATED_WINDOWS = 1 << 14


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
    _kept: dict[str, tuple[int, Windows]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def batch(self, step: int) -> StepBatch:
        """The rank's micro-batches of a step; all ranks get the same number."""
        return self._block(step, 1)[0]

    def iterate(self, first_step: int = 0, *, ahead: int = 2) -> Iterator[StepBatch]:
        """Yield the batches from ``first_step`` to the last step, built by a thread ahead of time.

        The thread builds blocks of several steps, since a Python call costs as much as reading many tokens.

        Args:
            first_step: Step of the first batch.
            ahead: Number of blocks to build ahead.
        """
        blocks = self._blocks(first_step)
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            pending = deque(pool.submit(self._block, *block) for block in islice(blocks, ahead))
            while pending:
                batches = pending.popleft().result()
                pending.extend(pool.submit(self._block, *block) for block in islice(blocks, 1))
                yield from batches

    def _blocks(self, first_step: int) -> Iterator[tuple[int, int]]:
        """First step and number of steps of each block. The first block has one step, to be fast."""
        size = 1
        while first_step < self.steps.num_steps:
            size = min(size, self.steps.num_steps - first_step)
            yield first_step, size
            first_step, size = first_step + size, min(2 * size, self._block_steps)

    @cached_property
    def _block_steps(self) -> int:
        """Number of steps in a full block."""
        micro_steps = micro_steps_of(self.steps.batch_windows, self.world_size, self.micro_batch_windows)
        step_tokens = micro_steps * self.micro_batch_windows * self.plan.window_tokens
        return max(1, _BLOCK_TOKENS // step_tokens)

    @cached_property
    def _row_R(self) -> Int64s:
        """The rank's rows of a step's global batch."""
        return rank_rows(
            self.steps.batch_windows,
            rank=self.rank,
            world_size=self.world_size,
            micro_batch_windows=self.micro_batch_windows,
        ).reshape(-1)

    def _located(self, first: int, end: int) -> Windows:
        """The windows [first, end) of the plan. Many are located at once and kept for the next call."""
        begin, windows = self._kept.get("windows", (0, None))
        if windows is None or not begin <= first <= end <= begin + windows.start.size:
            begin, stop = first, min(max(end, first + _LOCATED_WINDOWS), self.plan.total_windows)
            windows = self.plan.locate(np.arange(begin, stop))
            # One assignment, since another thread may be building a block.
            self._kept["windows"] = begin, windows
        return Windows(*(values[first - begin : end - begin] for values in windows))

    def _block(self, first_step: int, num_steps: int) -> list[StepBatch]:
        """The batches of consecutive steps, views of the same arrays."""
        ranges = [self.steps.window_range(step) for step in range(first_step, first_step + num_steps)]
        start, stop = ranges[0][0], sum(ranges[-1])
        windows = self._located(start, stop)
        row_R = self._row_R
        # Index of each row's window in the block, [steps, rows]; -1 for padding.
        index_SR = np.where(row_R < [[count] for _, count in ranges], row_R, -1)
        index_SR += np.where(index_SR < 0, 0, [[first - start] for first, _ in ranges])
        rows = collate_windows(
            self.stream, self.plan, self.objective, windows, index_SR.ravel(), np.tile(row_R, num_steps)
        )
        places = places_of(self.plan, windows)
        micro_batches = [mb.pin() if self.pin else mb for mb in rows.split(self.micro_batch_windows)]
        per_step = len(micro_batches) // num_steps
        return [
            StepBatch(
                first_step + number,
                micro_batches[number * per_step : (number + 1) * per_step],
                self.objective.loss_tokens(places.part(first - start, first - start + count)),
            )
            for number, (first, count) in enumerate(ranges)
        ]
