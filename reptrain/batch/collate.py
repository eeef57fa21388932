"""Windows of the subset's stream as tensors.

B: rows of a micro-batch; L: tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from reptrain.batch.objectives.example import NoisePlaces, Objective
from reptrain.plan import EpochPlan, MixturePlan, Stream, Subset


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass of one rank sees. All tensors are int64, but for the noise.

    A row that pads the batch has length 0: it is computed, and counts nowhere.
    """

    tokens_BL: Tensor
    """Raw token ids, zeros behind a row's length."""
    length_B: Tensor
    """Tokens of each row."""
    start_B: Tensor
    """Where each window starts in the run's stream."""
    row_B: Tensor
    """Row within the step's global batch: it keys the row's dropout masks."""
    noise: dict[str, Tensor] = field(default_factory=dict)
    """What the objective drew for the rows, by name (`is_noise_BL`: bool, the raw tokens that it hides)."""

    def to(self, device: torch.device) -> Self:
        """Copy to ``device`` without waiting, where the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Self:
        """Copy to page-locked memory, from which a GPU reads while the host goes on."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self,
            tokens_BL=function(self.tokens_BL),
            length_B=function(self.length_B),
            start_B=function(self.start_B),
            row_B=function(self.row_B),
            noise={name: function(tensor) for name, tensor in self.noise.items()},
        )


def collate(
    stream: Stream | Subset,
    plan: MixturePlan | EpochPlan,
    objective: Objective,
    global_index_B: np.ndarray,
    row_B: np.ndarray,
    *,
    noise_place_B: np.ndarray | None = None,
) -> MicroBatch:
    """The windows behind global indices, as one micro-batch.

    A subset of the tokens 5 to 14, window_tokens 4, global indices [2, -1], where 2 is the short last window:
    tokens_BL [[13, 14, 0, 0], [0, 0, 0, 0]], length_B [2, 0], start_B [8, 0].

    Args:
        stream: The tokens.
        plan: Which window comes at which global index.
        objective: Draws the noise.
        global_index_B: int64; -1 for a row that pads the batch.
        row_B: int64, each row's place in the step's global batch.
        noise_place_B: int64, what keys each row's noise beside its epoch; None: its source and its start.
    """
    is_window_B = global_index_B >= 0
    windows = plan.locate(np.where(is_window_B, global_index_B, 0))
    start_B = np.where(is_window_B, windows.start, 0)
    length_B = np.where(is_window_B, windows.length, 0)
    tokens_BL, _ = stream.tokens(start_B, length_B, plan.window_tokens)
    seed_B, place_B = plan.noise_place(windows)
    if noise_place_B is not None:
        seed_B, place_B = np.zeros_like(noise_place_B), noise_place_B
    places = NoisePlaces(seed_B, windows.epoch, place_B, length_B)
    noise = {
        name: _tensor(drawn) for name, drawn in objective.noise(places, width=plan.window_tokens).items()
    }
    return MicroBatch(*map(_tensor, (tokens_BL, length_B, start_B, row_B)), noise)


def noise_places(plan: MixturePlan | EpochPlan, global_index_N: np.ndarray) -> NoisePlaces:
    """What the noise of the windows behind global indices is a function of."""
    windows = plan.locate(global_index_N)
    seed_N, start_N = plan.noise_place(windows)
    return NoisePlaces(seed_N, windows.epoch, start_N, windows.length)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
