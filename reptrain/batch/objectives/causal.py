"""Causal language modelling: every token of a window is predicted from the tokens before it.

B: rows; L: tokens of a window.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE = -100
"""Target of a position that is not scored; the value that `torch.nn.functional.cross_entropy` ignores."""


def causal_inputs_and_targets(tokens_BL: Tensor, length_B: Tensor, *, start_id: int) -> tuple[Tensor, Tensor]:
    """Shift a window right behind a start token, so that a window of L tokens yields L predictions.

    >>> tokens = torch.tensor([[11, 12, 13, 14], [21, 22, 0, 0], [0, 0, 0, 0]])
    >>> inputs, targets = causal_inputs_and_targets(tokens, torch.tensor([4, 2, 0]), start_id=0)
    >>> inputs.tolist()
    [[0, 11, 12, 13], [0, 21, 22, 0], [0, 0, 0, 0]]
    >>> targets.tolist()
    [[11, 12, 13, 14], [21, 22, -100, -100], [-100, -100, -100, -100]]

    It works on the device, on the very tensor that the digest of the ledger is taken from.

    Args:
        tokens_BL: int64 token ids, zeros behind a row's length.
        length_B: int64 tokens of each row; 0 for a row that pads the batch.
        start_id: The id that stands before the first token.

    Returns:
        inputs_BL and targets_BL, int64; targets behind a row's length are `IGNORE`.
    """
    inputs_BL = torch.cat([torch.full_like(tokens_BL[:, :1], start_id), tokens_BL[:, :-1]], dim=1)
    is_token_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device) < length_B[:, None]
    targets_BL = tokens_BL.masked_fill(~is_token_BL, IGNORE)
    return inputs_BL, targets_BL
