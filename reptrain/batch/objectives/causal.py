"""Causal language modeling: predict every token of a window from the tokens before it.

Shapes: B rows of a micro-batch, L tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from reptrain.batch.micro_batch import MicroBatch
from reptrain.batch.objectives.example import Example, NoisePlaces, document_segments, shift_right
from reptrain_kernels.ops.linear_cross_entropy import IGNORE


@dataclass(frozen=True)
class Causal:
    """L predictions per window of L tokens: the inputs are the window, shifted right after a start token.

    >>> tokens = torch.tensor([[11, 12, 1, 14], [21, 22, 0, 0], [0, 0, 0, 0]])
    >>> batch = MicroBatch(tokens, torch.tensor([4, 2, 0]), *torch.zeros(2, 3))
    >>> example = Causal(start_id=0).example(batch)
    >>> example.inputs["tokens_BT"].tolist()
    [[0, 11, 12, 1], [0, 21, 0, 0], [0, 0, 0, 0]]
    >>> example.targets_BT.tolist()
    [[11, 12, 1, 14], [21, 22, -100, -100], [-100, -100, -100, -100]]

    With `document_eos_id`, attention stays within a document, and each document begins with a start token:

    >>> example = Causal(start_id=0, document_eos_id=1).example(batch)
    >>> example.inputs["tokens_BT"].tolist()[0], example.inputs["segments_BT"].tolist()[0]
    ([0, 11, 12, 0], [1, 1, 1, 2])

    Args:
        start_id: Id of the start token.
        document_eos_id: Id of the token that ends a document; None lets attention cross documents.
    """

    start_id: int
    document_eos_id: int | None = None

    def loss_tokens(self, places: NoisePlaces) -> int:
        """The number of tokens: each is predicted once."""
        return int(places.length_N.sum())

    def noise(self, places: NoisePlaces, *, width: int) -> dict[str, np.ndarray]:
        """No noise."""
        return {}

    def example(self, batch: MicroBatch) -> Example:
        """Inputs `tokens_BT`, `is_token_BT` and, with a document mask, `segments_BT`."""
        segments_BL = document_segments(batch.tokens_BL, batch.length_B, eos_id=self.document_eos_id)
        is_token_BL = segments_BL > 0
        targets_BL = batch.tokens_BL.masked_fill(~is_token_BL, IGNORE)
        inputs_BL = shift_right(targets_BL, segments_BL, start_id=self.start_id)
        inputs = {"tokens_BT": inputs_BL, "is_token_BT": is_token_BL}
        if self.document_eos_id is not None:
            inputs["segments_BT"] = segments_BL
        return Example(inputs, targets_BL, is_token_BL, torch.zeros_like(batch.length_B))
