"""`attention` without dropout, by torch's own fused kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reptrain_kernels.ops.attention.mask import AttentionMask


def attention_in_sdpa(
    q_BHTN: Tensor, k_BKSN: Tensor, v_BKSN: Tensor, scale: float, mask: AttentionMask
) -> Tensor:
    """See `attention`."""
    group = q_BHTN.shape[1] // k_BKSN.shape[1]
    if mask.is_plain():
        return F.scaled_dot_product_attention(
            q_BHTN, k_BKSN, v_BKSN, is_causal=mask.causal, scale=scale, enable_gqa=group > 1
        )
    if group > 1 and q_BHTN.device.type != "cpu":
        # On CUDA the fused kernels of torch take grouped queries or a mask, not both.
        k_BKSN, v_BKSN = (x.repeat_interleave(group, dim=1) for x in (k_BKSN, v_BKSN))
        group = 1
    dense = mask.dense or mask.build_dense(q_BHTN.shape[2], k_BKSN.shape[2], q_BHTN.device)
    attends = dense.mask
    if q_BHTN.dtype == torch.float64 and attends.is_floating_point():
        # Where a CPU has no AVX-512, torch 2.13 returns wrong numbers for float64 queries and an fp32 mask.
        attends = attends.double()
    y_BHTN = F.scaled_dot_product_attention(
        q_BHTN, k_BKSN, v_BKSN, attn_mask=attends, scale=scale, enable_gqa=group > 1
    )
    return y_BHTN if dense.has_keys_B1T1 is None else torch.where(dense.has_keys_B1T1, y_BHTN, 0.0)
