"""Inputs and targets as rows: for an encoder and its decoder, or one behind the other for a decoder alone.

B: rows; S: positions of the inputs; T: positions of the targets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reptrain.batch.objectives.example import IGNORE, Example, shift_right


class Rows(NamedTuple):
    """What is read and what is predicted. Both begin at the first column; padding is of segment 0."""

    source_BS: Tensor
    """int64, read."""
    source_segments_BS: Tensor
    """int64, the document of each."""
    targets_BT: Tensor
    """int64, predicted; `IGNORE` for padding."""
    segments_BT: Tensor
    """int64, the document of each."""
    is_raw_BT: Tensor
    """bool: targets that are the window's own tokens."""

    def for_encoder_decoder(self, *, start_id: int) -> Example:
        """Inputs `source_BS`, `inputs_BT` and the segments of both."""
        inputs = {
            "source_BS": self.source_BS,
            "inputs_BT": shift_right(self.targets_BT, self.segments_BT, start_id=start_id),
            "source_segments_BS": self.source_segments_BS,
            "segments_BT": self.segments_BT,
        }
        return Example(inputs, self.targets_BT, self.is_raw_BT, self._num_inputs_B)

    def for_decoder(self, *, start_id: int, document_mask: bool) -> Example:
        """Inputs `tokens_BT`, `is_token_BT`, `prefix_B` and, under a document mask, `segments_BT`: a row is
        the source, and behind it what the decoder of an encoder-decoder would read.

        >>> parts = ([7, 8, 0], [1, 1, 0], [5, 6], [1, 1], [True, True])
        >>> rows = Rows(*(torch.tensor([part]) for part in parts))
        >>> example = rows.for_decoder(start_id=0, document_mask=False)
        >>> example.inputs["tokens_BT"].tolist(), example.inputs["prefix_B"].tolist()
        ([[7, 8, 0, 5, 0]], [2])
        >>> example.targets_BT.tolist()
        [[-100, -100, 5, 6, -100]]
        """
        read_BT = shift_right(self.targets_BT, self.segments_BT, start_id=start_id)
        num_inputs_B = self._num_inputs_B
        segments = self._behind(self.source_segments_BS, self.segments_BT, fill=0)
        nothing_BS = torch.full_like(self.source_BS, IGNORE)
        inputs = {
            "tokens_BT": self._behind(self.source_BS, read_BT, fill=0),
            "is_token_BT": segments > 0,
            "prefix_B": num_inputs_B,
        }
        if document_mask:
            inputs["segments_BT"] = segments
        return Example(
            inputs,
            self._behind(nothing_BS, self.targets_BT, fill=IGNORE),
            self._behind(torch.zeros_like(self.source_BS, dtype=torch.bool), self.is_raw_BT, fill=False),
            num_inputs_B,
        )

    @property
    def _num_inputs_B(self) -> Tensor:
        return (self.source_segments_BS > 0).sum(1)

    def _behind(self, first_BS: Tensor, second_BT: Tensor, *, fill: int | bool) -> Tensor:
        """The second of each row behind the tokens of its first, without the first's padding."""
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
    """Rows of ``width`` with each value at its place; a place of -1 drops it.

    >>> scatter(torch.tensor([[2, -1, 0]]), torch.tensor([[5, 6, 7]]), 4, fill=0).tolist()
    [[7, 0, 5, 0]]
    """
    out = values_BN.new_full((values_BN.shape[0], width + 1), fill)
    # Dropped values share a column behind the row, which is cut off.
    return out.scatter_(1, torch.where(place_BN < 0, width, place_BN), values_BN)[:, :width]
