"""The attention masks of models (see `reptrain_kernels.ops.attention`).

Shapes: B rows, T query positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reptrain.config.model import DecoderConfig, ModelConfig
from reptrain.model.cache import Cache
from reptrain_kernels.implementation import Implementation
from reptrain_kernels.ops.attention import AttentionMask, choose_attention, prepare_mask


def attention_implementation(config: ModelConfig, device: torch.device, num_positions: int) -> Implementation:
    """Which implementation of attention a model runs: the Triton kernels support no sliding window and no
    relative positions.

    Args:
        config: The model.
        device: Where it runs.
        num_positions: Positions of its longest window.
    """
    if isinstance(config, DecoderConfig) and config.positions == "relative":
        return "torch"
    window = config.sliding_window if isinstance(config, DecoderConfig) else None
    mask = AttentionMask(causal=True, sliding_window=window).without_idle_window(num_positions)
    return choose_attention(device, mask)


def decoder_mask(
    tokens_BT: Tensor,
    segments_BT: Tensor | None = None,
    prefix_B: Tensor | None = None,
    sliding_window: int | None = None,
    cache: Cache | None = None,
) -> AttentionMask:
    """The mask of a decoder's self-attention, for all layers.

    Example:
        Three positions and a prefix of [2]: positions 0 and 1 attend to [0, 1], position 2 to [0, 1, 2].

    Args:
        tokens_BT: Gives B, T and the device.
        segments_BT: A position attends only to its own segment; None: to any.
        prefix_B: int64, length of the prefix, whose positions all positions of a row attend to; None: 0.
        sliding_window: A position attends only to positions fewer than this many places away; None: to any.
        cache: Holds the keys, those of ``tokens_BT`` already among them; None: the keys are those of
            ``tokens_BT``.
    """
    B, T = tokens_BT.shape
    mask = AttentionMask(
        causal=True,
        segments_BT=segments_BT,
        prefix_BT=None if prefix_B is None else prefix_B[:, None].expand(B, T),
        sliding_window=sliding_window,
        position_BT=None if cache is None else cache.position_BT,
    )
    return prepare_mask(mask, T, T if cache is None else cache.num_columns, tokens_BT.device)


def self_mask(segments_BT: Tensor, *, causal: bool, cache: Cache | None = None) -> AttentionMask:
    """The mask of the self-attention of T5, without its bias, for all layers.

    Args:
        segments_BT: A position attends to its own segment.
        causal: Whether it attends only to itself and the positions before.
        cache: Holds the keys; ``segments_BT`` then only give B, T and the device.
    """
    if cache is not None:
        return decoder_mask(segments_BT, cache=cache)
    T = segments_BT.shape[1]
    return prepare_mask(AttentionMask(causal=causal, segments_BT=segments_BT), T, T, segments_BT.device)


def cross_mask(segments_BT: Tensor, source_segments_BS: Tensor) -> AttentionMask:
    """The mask of cross-attention: a position attends to the source positions of its segment."""
    mask = AttentionMask(segments_BT=segments_BT, segments_BS=source_segments_BS)
    return prepare_mask(mask, segments_BT.shape[1], source_segments_BS.shape[1], segments_BT.device)
