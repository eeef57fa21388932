"""Causal language modelling: every token of a window is predicted from the tokens before it.

B: rows; L: tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from reptrain.batch.objectives.example import IGNORE, Example, NoisePlaces, document_segments, shift_right

if TYPE_CHECKING:
    from reptrain.batch.collate import MicroBatch


@dataclass(frozen=True)
class Causal:
    """A window of L tokens yields L predictions: its inputs are the window behind a start token.

    >>> from reptrain.batch.collate import MicroBatch
    >>> tokens = torch.tensor([[11, 12, 1, 14], [21, 22, 0, 0], [0, 0, 0, 0]])
    >>> batch = MicroBatch(tokens, torch.tensor([4, 2, 0]), *torch.zeros(2, 3))
    >>> example = Causal(start_id=0).example(batch)
    >>> example.inputs["tokens_BT"].tolist()
    [[0, 11, 12, 1], [0, 21, 0, 0], [0, 0, 0, 0]]
    >>> example.targets_BT.tolist()
    [[11, 12, 1, 14], [21, 22, -100, -100], [-100, -100, -100, -100]]

    With `document_eos_id` attention stays within a document, and each document begins behind a start token:

    >>> example = Causal(start_id=0, document_eos_id=1).example(batch)
    >>> example.inputs["tokens_BT"].tolist()[0], example.inputs["segments_BT"].tolist()[0]
    ([0, 11, 12, 0], [1, 1, 1, 2])

    Args:
        start_id: The id that stands before the first token.
        document_eos_id: The token that ends a document; None lets attention cross documents.
    """

    start_id: int
    document_eos_id: int | None = None

    def loss_tokens(self, places: NoisePlaces) -> int:
        """Every token is predicted once."""
        return int(places.length_N.sum())

    def noise(self, places: NoisePlaces, *, width: int) -> dict[str, np.ndarray]:
        """Nothing is drawn."""
        return {}

    def example(self, batch: MicroBatch) -> Example:
        """Inputs `tokens_BT`, `is_token_BT` and, under a document mask, `segments_BT`."""
        segments_BL = document_segments(batch.tokens_BL, batch.length_B, eos_id=self.document_eos_id)
        is_token_BL = segments_BL > 0
        targets_BL = batch.tokens_BL.masked_fill(~is_token_BL, IGNORE)
        inputs_BL = shift_right(targets_BL, segments_BL, start_id=self.start_id)
        inputs = {"tokens_BT": inputs_BL, "is_token_BT": is_token_BL}
        if self.document_eos_id is not None:
            inputs["segments_BT"] = segments_BL
        return Example(inputs, targets_BL, is_token_BL, torch.zeros_like(batch.length_B))
