"""The ledger's digest, computed on the device from the input tensors of the forward pass.

It equals `reptrain.plan.digest`, which documents the layout, bit for bit.

Shapes: B rows of a micro-batch, L tokens of a window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reptrain.batch.micro_batch import MicroBatch
from reptrain.random import GAMMA
from reptrain_kernels.counter import mix64_

_GAMMA = GAMMA - 2**64


def _mix_word(x: Tensor) -> Tensor:
    return mix64_(x * _GAMMA)


def batch_digest(batch: MicroBatch) -> Tensor:
    """Sum of the digests of a micro-batch's windows, modulo 2**64.

    Args:
        batch: The micro-batch; padding rows add nothing.

    Returns:
        int64 scalar on the batch's device; `value % 2**64` is the unsigned digest.
    """
    offset_L = torch.arange(batch.tokens_BL.shape[1], device=batch.tokens_BL.device)
    base_BL = (batch.start_B[:, None] + (offset_L + 1)) * _GAMMA
    hashed_BL = mix64_(batch.tokens_BL + base_BL)
    sum_B = torch.where(offset_L < batch.length_B[:, None], hashed_BL, 0).sum(dim=1)
    digest_B = mix64_(sum_B + _mix_word(_mix_word(batch.start_B) + batch.length_B))
    return torch.where(batch.length_B > 0, digest_B, 0).sum()
