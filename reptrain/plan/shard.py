"""Steps, and the ranks' shares of a step: pure functions of the step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reptrain.errors import PlanError


@dataclass(frozen=True)
class StepPlan:
    """Global indices by step: `batch_windows` consecutive ones, possibly fewer in the last step.

    batch_windows 4, total_windows 10: steps [0, 4) [4, 8) [8, 10)
    """

    batch_windows: int
    total_windows: int

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        return -(-self.total_windows // self.batch_windows)

    def window_range(self, step: int) -> tuple[int, int]:
        """First global index of a step, and its number of windows.

        Raises:
            PlanError: If the run has no such step.
        """
        if not 0 <= step < self.num_steps:
            raise PlanError(
                "step",
                got=step,
                rule=f"must be from 0 to {self.num_steps - 1}",
                remedy="Choose a step of the run.",
            )
        first = step * self.batch_windows
        return first, min(self.batch_windows, self.total_windows - first)


def rank_rows(
    batch_windows: int, *, rank: int, world_size: int, micro_batch_windows: int
) -> npt.NDArray[np.int64]:
    """The rows of a step's global batch that a rank computes: a contiguous block.

    6 rows on 2 ranks, micro-batch 2: rank 0 has [[0 1] [2 3]], rank 1 has [[4 5] [6 7]]; rows 6 and 7
    do not exist and are masked.

    Args:
        batch_windows: Rows of a full step.
        rank: This rank, in [0, world_size).
        world_size: Ranks that share the batch.
        micro_batch_windows: Rows of one forward pass on one rank.

    Returns:
        int64 [micro_steps, micro_batch_windows]. Rows at or above the step's number of windows are masked.
    """
    micro_steps = micro_steps_of(batch_windows, world_size, micro_batch_windows)
    share = micro_steps * micro_batch_windows
    return (rank * share + np.arange(share, dtype=np.int64)).reshape(micro_steps, micro_batch_windows)


def micro_steps_of(batch_windows: int, world_size: int, micro_batch_windows: int) -> int:
    """Forward passes of one rank in a step (gradient accumulation steps)."""
    return -(-batch_windows // (world_size * micro_batch_windows))
