"""The batches of fine-tuning: examples of a task, all of them in every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from reptrain.batch.collate import MicroBatch
from reptrain.config.quantities import Budget
from reptrain.config.scheduled import RunPosition
from reptrain.distributed.world import World
from reptrain.plan import EpochPlan, StepPlan, plan_epochs, rank_rows
from reptrain.tasks.pairs import Pair, pack, widths_of
from reptrain.training.batches import Batch


def example_order(num_examples: int, *, epochs: int, seed: int) -> EpochPlan:
    """The order of the examples: a new permutation in every epoch."""
    return plan_epochs(
        unique_tokens=num_examples,
        window_tokens=1,
        budget=Budget(epochs=Fraction(epochs)),
        order="reshuffle",
        cut="fixed",
        seed=seed,
    )


@dataclass(frozen=True)
class ExampleBatches:
    """A rank's batches as a function of the step. An example counts as a window and as a token.

    Args:
        pairs: The examples as token ids.
        order: Which example comes when.
        steps: Which examples form a step.
        world: The ranks.
        micro_batch_rows: Rows of one forward pass on one rank.
        in_one_row: Whether input and target share a row, as in a decoder.
    """

    pairs: Sequence[Pair]
    order: EpochPlan
    steps: StepPlan
    world: World
    micro_batch_rows: int
    in_one_row: bool

    def iterate(self, first_step: int) -> Iterator[Batch]:
        """Yield the batches from ``first_step`` to the last step."""
        for step in range(first_step, self.steps.num_steps):
            first, count = self.steps.window_range(step)
            micro_batches, target_tokens = self._micro_batches(first, count)
            epochs = Fraction(first, len(self.pairs))
            position = RunPosition(step, first, self.steps.total_windows, epochs)
            yield Batch(position, first, count, count, micro_batches, target_tokens)

    def _micro_batches(self, first: int, count: int) -> tuple[list[MicroBatch], int]:
        """This rank's micro-batches of a step, and the target tokens of all ranks."""
        number_N = self.order.locate(np.arange(first, first + count)).start
        chosen = [self.pairs[number] for number in number_N]
        # All micro-batches of a step have one width, so their number does not change the results.
        widths = widths_of(chosen, in_one_row=self.in_one_row)
        rows_MB = rank_rows(
            self.steps.batch_windows,
            rank=self.world.rank,
            world_size=self.world.world_size,
            micro_batch_windows=self.micro_batch_rows,
        )
        micro_batches = []
        for row_B in rows_MB:
            number_B = number_N.take(row_B, mode="clip")
            number_B[row_B >= count] = -1
            micro_batches.append(pack(self.pairs, number_B, row_B, in_one_row=self.in_one_row, widths=widths))
        return micro_batches, sum(len(pair.target) for pair in chosen)
