"""What positions may read, told by structure: fused attention takes this, the plain one [T, S] tensors.

Which of the two runs is decided by the device (see `reptrain_kernels.implementation`).

Shapes: B rows, T query positions, S key positions, H heads, K key-value heads, N width of a head, R offsets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reptrain.config.model import DecoderConfig, ModelConfig
from reptrain.model.dropout import Dropout
from reptrain_kernels.implementation import Implementation, choose_implementation
from reptrain_kernels.ops.attention import Mask, attention


class Sight(NamedTuple):
    """What each position may read, and with what bias by distance."""

    mask: Mask
    bias_HR: Tensor | None = None


def is_fused(device: torch.device) -> bool:
    """Whether models on the device attend by the fused operation."""
    return choose_implementation(device) == "triton"


def hides(sliding_window: int | None, num_positions: int) -> bool:
    """Whether a sliding window hides any of ``num_positions`` positions from another."""
    return sliding_window is not None and sliding_window < num_positions


def attention_implementation(config: ModelConfig, device: torch.device, num_positions: int) -> Implementation:
    """Which implementation of attention a model runs: the fused kernel knows no sliding window.

    Args:
        config: The model.
        device: Where it runs.
        num_positions: Positions of its longest window.
    """
    if isinstance(config, DecoderConfig) and hides(config.sliding_window, num_positions):
        return "torch"
    return choose_implementation(device)


def causal_sight(tokens_BT: Tensor, segments_BT: Tensor | None, prefix_B: Tensor | None = None) -> Sight:
    """What the positions of a decoder read.

    Args:
        tokens_BT: Gives T.
        segments_BT: A position reads its own segment only; None: any.
        prefix_B: int64, so many of a row's first positions are read by those before them too; None: none.
    """
    prefix_BT = None if prefix_B is None else prefix_B[:, None].expand(tokens_BT.shape)
    return Sight(Mask(causal=True, segments_BT=segments_BT, prefix_BT=prefix_BT))


def attend(
    q_BHTN: Tensor,
    k_BKSN: Tensor,
    v_BKSN: Tensor,
    sight: Sight,
    *,
    scale: float,
    dropout: Dropout,
    keys_PB: Tensor | None,
) -> Tensor:
    """Fused attention, y_BHTN; a position that may read nothing gets zeros.

    Args:
        q_BHTN: Queries.
        k_BKSN: Keys.
        v_BKSN: Values.
        sight: What each query may read.
        scale: Of the scores.
        dropout: Of the weights.
        keys_PB: Dropout keys of the layer's sites; None drops nothing.
    """
    return attention(
        q_BHTN,
        k_BKSN,
        v_BKSN,
        scale=scale,
        bias_HR=sight.bias_HR,
        mask=sight.mask,
        key_BH=None if keys_PB is None or not dropout.is_on else dropout.head_keys(keys_PB, q_BHTN.shape[1]),
        rate=dropout.rate_2,
    )
