"""Rows of inputs and targets: apart for an encoder-decoder, concatenated for a decoder-only model.

Shapes: B rows of a micro-batch, S positions of the inputs, T positions of the targets.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from reptrain.batch.objectives.example import Example, shift_right
from reptrain_kernels.ops.linear_cross_entropy import IGNORE


class Rows(NamedTuple):
    """Inputs and targets. Both begin at the first column; padding has segment 0."""

    source_BS: Tensor
    """int64, inputs."""
    source_segments_BS: Tensor
    """int64, document index of each input."""
    targets_BT: Tensor
    """int64, `IGNORE` for padding."""
    segments_BT: Tensor
    """int64, document index of each target."""
    is_raw_BT: Tensor
    """bool: targets that are tokens of the window."""

    def for_encoder_decoder(self, *, start_id: int) -> Example:
        """The example of an encoder-decoder: inputs `source_BS`, `inputs_BT` and the segments of both."""
        inputs = {
            "source_BS": self.source_BS,
            "inputs_BT": shift_right(self.targets_BT, self.segments_BT, start_id=start_id),
            "source_segments_BS": self.source_segments_BS,
            "segments_BT": self.segments_BT,
        }
        return Example(inputs, self.targets_BT, self.is_raw_BT, self._num_inputs_B)

    def for_decoder(self, *, start_id: int, document_mask: bool) -> Example:
        """The example of a decoder-only model: a row is the source, then the inputs of an encoder-decoder's
        decoder. Inputs `tokens_BT`, `is_token_BT`, `prefix_B` and, with a document mask, `segments_BT`.

        >>> parts = ([7, 8, 0], [1, 1, 0], [5, 6], [1, 1], [True, True])
        >>> rows = Rows(*(torch.tensor([part]) for part in parts))
        >>> example = rows.for_decoder(start_id=0, document_mask=False)
        >>> example.inputs["tokens_BT"].tolist(), example.inputs["prefix_B"].tolist()
        ([[7, 8, 0, 5, 0]], [2])
        >>> example.targets_BT.tolist()
        [[-100, -100, 5, 6, -100]]
        """
        inputs_BT = shift_right(self.targets_BT, self.segments_BT, start_id=start_id)
        num_inputs_B = self._num_inputs_B
        segments = self._concatenate(self.source_segments_BS, self.segments_BT, fill=0)
        no_target_BS = torch.full_like(self.source_BS, IGNORE)
        inputs = {
            "tokens_BT": self._concatenate(self.source_BS, inputs_BT, fill=0),
            "is_token_BT": segments > 0,
            "prefix_B": num_inputs_B,
        }
        if document_mask:
            inputs["segments_BT"] = segments
        return Example(
            inputs,
            self._concatenate(no_target_BS, self.targets_BT, fill=IGNORE),
            self._concatenate(torch.zeros_like(self.source_BS, dtype=torch.bool), self.is_raw_BT, fill=False),
            num_inputs_B,
        )

    @property
    def _num_inputs_B(self) -> Tensor:
        return (self.source_segments_BS > 0).sum(1)

    def _concatenate(self, first_BS: Tensor, second_BT: Tensor, *, fill: int | bool) -> Tensor:
        """Append each row of ``second_BT`` to the tokens of ``first_BS``, with no padding between."""
        column_S, column_T = (torch.arange(x.shape[1], device=x.device) for x in (first_BS, second_BT))
        first_place_BS = torch.where(self.source_segments_BS > 0, column_S, -1)
        second_place_BT = torch.where(self.segments_BT > 0, self._num_inputs_B[:, None] + column_T, -1)
        return scatter(
            torch.cat([first_place_BS, second_place_BT], dim=1),
            torch.cat([first_BS, second_BT], dim=1),
            first_BS.shape[1] + second_BT.shape[1],
            fill=fill,
        )


def scatter(place_BN: Tensor, values_BN: Tensor, width: int, *, fill: int | bool) -> Tensor:
    """Rows of ``width`` columns with each value at its column ``place_BN``; -1 drops the value.

    >>> scatter(torch.tensor([[2, -1, 0]]), torch.tensor([[5, 6, 7]]), 4, fill=0).tolist()
    [[7, 0, 5, 0]]
    """
    out = values_BN.new_full((values_BN.shape[0], width + 1), fill)
    # Dropped values go to an extra last column, which is cut off.
    return out.scatter_(1, torch.where(place_BN < 0, width, place_BN), values_BN)[:, :width]


@cache
def ids_on(device: torch.device, ids: tuple[int, ...]) -> Tensor:
    """Ids as a tensor, int64, that is copied to its device once: each such copy waits for the device."""
    return torch.tensor(ids, device=device)
