"""The input digest: 64 bits over all that enters the embedding, the attention mask and the loss.

The model computes it from these very tensors, so that the ledger proves what the model was trained on,
whatever happened between the data loader and the forward pass. docs/format.md defines it.

Shapes: B rows of a micro-batch, T positions of a stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reptrain.random import GAMMA
from reptrain_kernels.counter import mix64_
from reptrain_kernels.ops.linear_cross_entropy import IGNORE, Targets

_GAMMA = GAMMA - 2**64
_ENCODER, _CAUSAL, _PREFIX = 1, 2, 4


@dataclass(eq=False)
class Witness:
    """The input digest of a forward pass: the caller creates it, the model fills it."""

    index_B: Tensor
    """int64: global index of each row's window, any value for a row without a window."""
    digest: Tensor | None = None
    """int64 scalar: the digest; `value % 2**64` is the unsigned one."""
    num_targets: Tensor | None = None
    """int64 scalar: number of targets."""

    def fill(self, *digest_B: Tensor, targets: Tensor) -> None:
        """Store the digests of the streams' rows, and count the targets."""
        self.digest = sum(part_B.sum() for part_B in digest_B)
        self.num_targets = (targets != IGNORE).sum()


def row_digests(
    index_B: Tensor,
    id_BT: Tensor,
    *,
    is_token_BT: Tensor,
    causal: bool,
    position_T: Tensor | None = None,
    segments_BT: Tensor | None = None,
    prefix_B: Tensor | None = None,
    targets: Targets | None = None,
) -> Tensor:
    """The part of each row in the input digest. It adds up over parts of the row's positions.

    Args:
        index_B: int64, global index of each row's window.
        id_BT: int64, ids that enter the embedding.
        is_token_BT: bool, False for padding.
        causal: Whether the stream's self-attention is causal; False for an encoder.
        position_T: int64, the positions of the ids in the row; None: all of the row's.
        segments_BT: int64, the segments of the attention mask; None if it has none.
        prefix_B: int64, the prefix lengths of the attention mask; None if it has none.
        targets: The targets of the stream, with the objective's weights; None for an encoder.

    Returns:
        int64 [B].
    """
    code = _CAUSAL if causal else _ENCODER
    row_B = _mix_word(_mix_word(index_B + 1) + (code if prefix_B is None else code + _PREFIX * prefix_B))
    # The position meets the key before any product: on a bare index, compiled code may assume that nothing
    # wraps.
    if position_T is None:
        position_T = torch.arange(id_BT.shape[1], device=id_BT.device)
    word_BT = (row_B[:, None] ^ position_T).mul_(_GAMMA).add_(id_BT)
    note_BT = is_token_BT.long() if segments_BT is None else 2 * segments_BT + is_token_BT
    counts_BT = is_token_BT
    if targets is None:
        word_BT = mix64_(word_BT.add_(IGNORE * 2**32)).add_(note_BT * 2**32)
    else:
        has_target_BT = targets.target != IGNORE
        counts_BT = is_token_BT | has_target_BT
        word_BT = mix64_(word_BT.add_(targets.target * 2**32)).add_(note_BT * 2**32)
        word_BT = word_BT.add_(_weight_bits(targets) * has_target_BT)
    return (mix64_(word_BT) * counts_BT).sum(1)


def _weight_bits(targets: Targets) -> Tensor:
    """Bits of the targets' fp32 weights, as signed integers."""
    weight = (
        torch.ones_like(targets.target, dtype=torch.float32) if targets.weight is None else targets.weight
    )
    return weight.view(torch.int32).long()


def _mix_word(x: Tensor) -> Tensor:
    return mix64_(x * _GAMMA)
