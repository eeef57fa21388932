"""Attention with a bias by distance, masks by structure and dropout by counter; no [T, S] tensor is stored.

Shapes: B rows, T queries, S keys, H query heads, K key-value heads (H / K queries share one), N width of
a head, R = 2 E + 1 offsets from -E to E.

    score[t, s]  = scale * q[t] . k[s] + bias[clamp(s - t, -E, E)]      over the s that t may see
    weight[t, :] = softmax of score[t, :], then `counter.dropout` (position t, unit s)
    y[t]         = sum over s of weight[t, s] * v[s]

t sees s where both are of one segment and, if causal, where s <= t or s < prefix[t]. A query that sees no
key gets zeros, and no gradient flows from it.

Sources:
    Raffel et al. 2020, section 2.1 (bias by distance). Ainslie et al. 2023 (grouped queries).
    Dao, "FlashAttention-2", 2023 (the Triton kernels' order of work).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reptrain_kernels import counter
from reptrain_kernels.implementation import Implementation, choose_implementation


class Mask(NamedTuple):
    """What a query may see, told by structure."""

    causal: bool = False
    """Only keys at its own position and before."""
    segments_BT: Tensor | None = None
    """Integers: the queries' segments; None: everything is of one."""
    segments_BS: Tensor | None = None
    """The keys' segments; None: they are the queries'."""
    prefix_BT: Tensor | None = None
    """Integers: a causal query also sees the keys at positions below this one."""

    @property
    def key_segments_BS(self) -> Tensor | None:
        """The keys' segments, given or the queries'."""
        return self.segments_BT if self.segments_BS is None else self.segments_BS

    def visible(self, num_queries: int, num_keys: int, device: torch.device) -> Tensor:
        """What each query sees, bool, shape [B or 1, T, S]."""
        query_T1 = torch.arange(num_queries, device=device)[:, None]
        key_S = torch.arange(num_keys, device=device)
        visible_BTS = torch.ones(1, num_queries, num_keys, dtype=torch.bool, device=device)
        if self.causal:
            visible_BTS = visible_BTS & (key_S <= query_T1)
            if self.prefix_BT is not None:
                visible_BTS = visible_BTS | (key_S < self.prefix_BT[..., None])
        if self.segments_BT is not None and self.key_segments_BS is not None:
            visible_BTS = visible_BTS & (self.segments_BT[..., None] == self.key_segments_BS[:, None])
        return visible_BTS


EVERYTHING = Mask()


def attention(
    q_BHTN: Tensor,
    k_BKSN: Tensor,
    v_BKSN: Tensor,
    *,
    scale: float,
    bias_HR: Tensor | None = None,
    mask: Mask = EVERYTHING,
    key_BH: Tensor | None = None,
    rate: counter.Rate = 0.0,
    impl: Implementation | None = None,
) -> Tensor:
    """Attention as this module's docstring defines it.

    Args:
        q_BHTN: Queries, floating point. Any strides with a contiguous last axis are read as they are.
        k_BKSN: Keys, of the same dtype.
        v_BKSN: Values, of the same dtype.
        scale: Multiplies the scores: 1 for T5, else commonly ``N**-0.5``.
        bias_HR: Added to the score of each offset, key position minus query position, from -E to E; offsets
            beyond take the ends' values (see `offset_bias`).
        mask: What each query may see. Causal attention needs T = S.
        key_BH: int64, the call keys of each row and head (see `counter`); None drops nothing.
        rate: Probability of a weight's being dropped, in [0, 1), a number or packed (see `counter.dropout`).
        impl: "torch" or "triton"; None: by the device, and torch's own flash attention where that can do
            the same (no bias, no dropout, no segments, no prefix).

    Returns:
        y_BHTN, the dtype of ``q_BHTN``.

    Raises:
        ValueError: If shapes, dtypes or the rate do not fit.
    """
    _check(q_BHTN, k_BKSN, v_BKSN, bias_HR, mask, key_BH)
    key_BH, rate_2 = counter.key_and_rate(key_BH, rate)
    if choose_implementation(q_BHTN.device, impl) == "torch":
        return attention_in_torch(q_BHTN, k_BKSN, v_BKSN, scale, bias_HR, mask, key_BH, rate_2)
    features = (bias_HR, key_BH, mask.segments_BT, mask.prefix_BT)
    if impl is None and all(feature is None for feature in features):
        return F.scaled_dot_product_attention(
            q_BHTN, k_BKSN, v_BKSN, is_causal=mask.causal, scale=scale, enable_gqa=True
        )
    from reptrain_kernels.ops.attention.triton import attention_forward

    return attention_forward(
        q_BHTN,
        k_BKSN,
        v_BKSN,
        bias_HR,
        mask.segments_BT,
        mask.key_segments_BS,
        mask.prefix_BT,
        key_BH,
        rate_2,
        scale,
        mask.causal,
    )[0]


def offset_bias(table_UH: Tensor, bucket_R: Tensor) -> Tensor:
    """T5's bias by offset, from its table: what `attention` takes as ``bias_HR``.

    Args:
        table_UH: A number for each bucket and head.
        bucket_R: int64, the bucket of each offset from -E to E. From E on, and from -E back, all offsets
            must share a bucket.

    Returns:
        bias_HR. Its gradient is summed in a fixed order on CUDA too, as `F.embedding` does.
    """
    return F.embedding(bucket_R, table_UH).T


def attention_in_torch(
    q_BHTN: Tensor,
    k_BKSN: Tensor,
    v_BKSN: Tensor,
    scale: float,
    bias_HR: Tensor | None,
    mask: Mask,
    key_BH: Tensor | None,
    rate_2: Tensor | None,
) -> Tensor:
    """The definition in plain torch; scores in fp32, or float64 for inputs of float64."""
    group = q_BHTN.shape[1] // k_BKSN.shape[1]
    k_BHSN, v_BHSN = (x.repeat_interleave(group, dim=1) for x in (k_BKSN, v_BKSN))
    num_queries, num_keys = q_BHTN.shape[2], k_BKSN.shape[2]
    exact = torch.promote_types(q_BHTN.dtype, torch.float32)
    score_BHTS = (q_BHTN @ k_BHSN.transpose(-1, -2)).to(exact) * scale
    if bias_HR is not None:
        score_BHTS = score_BHTS + spread_bias(bias_HR, num_queries, num_keys)
    visible_BTS = mask.visible(num_queries, num_keys, q_BHTN.device)
    found_B1T1 = visible_BTS.any(-1, keepdim=True)[:, None]
    # Where nothing is visible the softmax is of all scores, so that no NaN arises; its result is not used.
    score_BHTS = score_BHTS.masked_fill(~visible_BTS[:, None] & found_B1T1, -torch.inf)
    weight_BHTS = torch.where(found_B1T1, score_BHTS.softmax(-1), 0.0).to(v_BHSN.dtype)
    if key_BH is not None and rate_2 is not None:
        weight_BHTS = counter.dropout(weight_BHTS, key_BH, rate_2, impl="torch")
    return weight_BHTS @ v_BHSN


def spread_bias(bias_HR: Tensor, num_queries: int, num_keys: int) -> Tensor:
    """The bias of each pair of positions, bias_HTS: the same along each diagonal.

    Example:
        R = 3, bias [[5, 6, 7]], T = S = 3: [[[6, 7, 7], [5, 6, 7], [5, 5, 6]]].
    """
    end = bias_HR.shape[1] // 2
    query_T1 = torch.arange(num_queries, device=bias_HR.device)[:, None]
    key_S = torch.arange(num_keys, device=bias_HR.device)
    return bias_HR[:, (key_S - query_T1).clamp(-end, end) + end]


def _check(
    q_BHTN: Tensor,
    k_BKSN: Tensor,
    v_BKSN: Tensor,
    bias_HR: Tensor | None,
    mask: Mask,
    key_BH: Tensor | None,
) -> None:
    (B, H, T, N), (_, K, S, _) = q_BHTN.shape, k_BKSN.shape
    if k_BKSN.shape != (B, K, S, N) or v_BKSN.shape != k_BKSN.shape or H % K:
        raise ValueError(
            "q, k, v: must be [B, H, T, N] and twice [B, K, S, N] with H a multiple of K, but got "
            f"{tuple(q_BHTN.shape)}, {tuple(k_BKSN.shape)}, {tuple(v_BKSN.shape)}"
        )
    if not q_BHTN.dtype == k_BKSN.dtype == v_BKSN.dtype:
        raise ValueError(
            f"q, k, v: must have one dtype, but got {q_BHTN.dtype}, {k_BKSN.dtype}, {v_BKSN.dtype}"
        )
    if bias_HR is not None and (bias_HR.ndim != 2 or bias_HR.shape[0] != H or bias_HR.shape[1] % 2 == 0):
        raise ValueError(f"bias_HR: must be [{H}, an odd number], but got {tuple(bias_HR.shape)}")
    if mask.causal and T != S:
        raise ValueError(f"mask.causal: needs as many keys as queries, but got {S} and {T}")
    if mask.prefix_BT is not None and not mask.causal:
        raise ValueError("mask.prefix_BT: tells what a causal query sees besides, so causal must be True")
    if mask.segments_BS is not None and mask.segments_BT is None:
        raise ValueError("mask.segments_BS: needs the queries' segments too, but segments_BT is None")
    for name, x, shape in (
        ("mask.segments_BT", mask.segments_BT, (B, T)),
        ("mask.segments_BS", mask.key_segments_BS, (B, S)),
        ("mask.prefix_BT", mask.prefix_BT, (B, T)),
    ):
        if x is not None and x.shape != shape:
            raise ValueError(f"{name}: must have shape {shape}, but got {tuple(x.shape)}")
    if key_BH is not None and (key_BH.shape != (B, H) or key_BH.dtype != torch.int64):
        raise ValueError(
            f"key_BH: must be int64 of shape {(B, H)}, but got {key_BH.dtype} of {tuple(key_BH.shape)}"
        )
