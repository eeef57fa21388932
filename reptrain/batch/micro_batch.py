"""The tensors of one forward pass.

Shapes: B rows of a micro-batch, L tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass on one rank. All tensors except the noise are int64.

    A padding row has length 0: the model computes it, but no loss or count includes it.
    """

    tokens_BL: Tensor
    """Raw token ids, 0 after the end of a row."""
    length_B: Tensor
    """Number of tokens in each row."""
    start_B: Tensor
    """Position of each window's first token in the run's stream."""
    row_B: Tensor
    """Index of each row in the step's global batch: it keys the row's dropout masks."""
    noise: dict[str, Tensor] = field(default_factory=dict)
    """What the objective drew for the rows, by name (`is_noise_BL`: bool, the raw tokens that it hides)."""

    def to(self, device: torch.device) -> Self:
        """Copy to ``device``, asynchronously if the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Self:
        """Copy to page-locked memory, so that copies to a GPU are asynchronous."""
        return self._map(Tensor.pin_memory)

    def split(self, num_rows: int) -> list[Self]:
        """Micro-batches of ``num_rows`` rows each, views of this one's tensors."""
        firsts = range(0, self.tokens_BL.shape[0], num_rows)
        parts = [slice(first, first + num_rows) for first in firsts]
        return [self._map(partial(_rows, part)) for part in parts]

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self,
            tokens_BL=function(self.tokens_BL),
            length_B=function(self.length_B),
            start_B=function(self.start_B),
            row_B=function(self.row_B),
            noise={name: function(tensor) for name, tensor in self.noise.items()},
        )


def _rows(part: slice, tensor: Tensor) -> Tensor:
    return tensor[part]
