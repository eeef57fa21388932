"""Attention with a bias by offset, masks by structure and dropout by counter.

Shapes: B rows, T queries, S keys, H query heads, K key-value heads (H / K queries share one), N width of
a head, R = 2 E + 1 offsets from -E to E.

    score[t, s]  = scale * q[t] . k[s] + bias[clamp(s - t, -E, E)]      over the s that t attends to
    weight[t, :] = softmax of score[t, :], then `counter.dropout` (position t, unit s)
    y[t]         = sum over s of weight[t, s] * v[s]

`AttentionMask` has the rules of which s a query t attends to, and the bias. A query without keys gives zeros
and passes no gradient on.

Implementations: Triton (stores no [T, S] tensor), torch's `scaled_dot_product_attention` where nothing is
dropped, and the reference in plain torch.

Sources:
    Raffel et al. 2020, section 2.1 (bias by offset). Ainslie et al. 2023 (grouped queries).
    Dao, "FlashAttention-2", 2023 (order of work of the Triton kernels).
"""

from __future__ import annotations

import torch
from torch import Tensor

from reptrain_kernels import counter, rates
from reptrain_kernels.implementation import Implementation, choose_implementation
from reptrain_kernels.ops.attention.mask import NO_MASK, AttentionMask, spread_bias
from reptrain_kernels.ops.attention.reference import attention_reference
from reptrain_kernels.ops.attention.sdpa import attention_in_sdpa

__all__ = ["AttentionMask", "attention", "choose_attention", "prepare_mask", "spread_bias"]


def choose_attention(
    device: torch.device, mask: AttentionMask, asked: Implementation | None = None
) -> Implementation:
    """The implementation that `attention` runs: `choose_implementation`, except for masks without a kernel.

    Raises:
        ValueError: If ``asked`` is "triton" and its kernels do not support the mask.
    """
    chosen = choose_implementation(device, asked)
    if chosen == "torch" or mask.has_kernel():
        return chosen
    if asked is not None:
        raise ValueError(
            "mask: Triton supports no sliding_window, position_BT and score_BHTS; leave them out, or set"
            " impl to None"
        )
    return "torch"


def prepare_mask(mask: AttentionMask, num_queries: int, num_keys: int, device: torch.device) -> AttentionMask:
    """A mask for several calls of `attention`: dense where the chosen implementation needs a tensor.

    Args:
        mask: Not dense yet.
        num_queries: T.
        num_keys: S.
        device: Where `attention` runs.
    """
    mask = mask.without_idle_window(max(num_queries, num_keys))
    if mask.is_plain() or choose_attention(device, mask) == "triton":
        return mask
    return mask._replace(dense=mask.build_dense(num_queries, num_keys, device))


def attention(
    q_BHTN: Tensor,
    k_BKSN: Tensor,
    v_BKSN: Tensor,
    *,
    scale: float,
    mask: AttentionMask = NO_MASK,
    key_BH: Tensor | None = None,
    rate: rates.Rate = 0.0,
    impl: Implementation | None = None,
) -> Tensor:
    """Attention as this module's docstring defines it.

    Args:
        q_BHTN: Queries, floating point. Not copied if the last axis is contiguous.
        k_BKSN: Keys, of the same dtype.
        v_BKSN: Values, of the same dtype.
        scale: Multiplies the scores: 1 for T5, else commonly ``N**-0.5``.
        mask: Which keys each query attends to, and the bias. Causal attention needs T = S or positions.
        key_BH: int64, the call keys of each row and head (see `counter`); None drops nothing.
        rate: Probability of dropping a weight, in [0, 1), a number or packed (see `counter.dropout`).
        impl: "torch" (the reference) or "triton"; None: Triton on CUDA where its kernels support the mask,
            torch's fused attention where nothing is dropped and either the mask is plain or Triton is not
            chosen, else the reference.

    Returns:
        y_BHTN, the dtype of ``q_BHTN``.

    Raises:
        ValueError: If shapes or dtypes do not match, or the rate is not valid.
    """
    _check(q_BHTN, k_BKSN, v_BKSN, mask, key_BH)
    key_BH, rate_2 = counter.key_and_rate(key_BH, rate)
    chosen = choose_attention(q_BHTN.device, mask, impl)
    if impl is None and key_BH is None and (chosen == "torch" or mask.is_plain()):
        return attention_in_sdpa(q_BHTN, k_BKSN, v_BKSN, scale, mask)
    if chosen == "torch":
        return attention_reference(q_BHTN, k_BKSN, v_BKSN, scale, mask, key_BH, rate_2)
    from reptrain_kernels.ops.attention.triton import attention_forward

    return attention_forward(
        q_BHTN,
        k_BKSN,
        v_BKSN,
        mask.bias_HR,
        mask.segments_BT,
        mask.key_segments(),
        mask.prefix_BT,
        key_BH,
        rate_2,
        scale,
        mask.causal,
    )[0]


def _check(
    q_BHTN: Tensor,
    k_BKSN: Tensor,
    v_BKSN: Tensor,
    mask: AttentionMask,
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
    bias_HR = mask.bias_HR
    if bias_HR is not None and (bias_HR.ndim != 2 or bias_HR.shape[0] != H or bias_HR.shape[1] % 2 == 0):
        raise ValueError(f"mask.bias_HR: must be [{H}, an odd number], but got {tuple(bias_HR.shape)}")
    if mask.causal and T != S and mask.position_BT is None:
        raise ValueError(f"mask.causal: needs as many keys as queries, but got {S} and {T}")
    if mask.prefix_BT is not None and not mask.causal:
        raise ValueError("mask.prefix_BT: widens a causal mask, so mask.causal must be True")
    if mask.segments_BS is not None and mask.segments_BT is None:
        raise ValueError("mask.segments_BS: needs the queries' segments too, but mask.segments_BT is None")
    for name, x, shape in (
        ("mask.segments_BT", mask.segments_BT, (B, T)),
        ("mask.segments_BS", mask.key_segments(), (B, S)),
        ("mask.prefix_BT", mask.prefix_BT, (B, T)),
        ("mask.position_BT", mask.position_BT, (B, T)),
    ):
        if x is not None and x.shape != shape:
            raise ValueError(f"{name}: must have shape {shape}, but got {tuple(x.shape)}")
    if key_BH is not None and (key_BH.shape != (B, H) or key_BH.dtype != torch.int64):
        raise ValueError(
            f"key_BH: must be int64 of shape {(B, H)}, but got {key_BH.dtype} of {tuple(key_BH.shape)}"
        )
