"""The definition of `attention` in plain torch, which stores all scores."""

from __future__ import annotations

import torch
from torch import Tensor

from reptrain_kernels import counter
from reptrain_kernels.ops.attention.mask import AttentionMask


def attention_reference(
    q_BHTN: Tensor,
    k_BKSN: Tensor,
    v_BKSN: Tensor,
    scale: float,
    mask: AttentionMask,
    key_BH: Tensor | None,
    rate_2: Tensor | None,
) -> Tensor:
    """See `attention`. Scores are in fp32, or float64 for inputs of float64."""
    group = q_BHTN.shape[1] // k_BKSN.shape[1]
    k_BHSN, v_BHSN = (x.repeat_interleave(group, dim=1) for x in (k_BKSN, v_BKSN))
    exact = torch.promote_types(q_BHTN.dtype, torch.float32)
    score_BHTS = (q_BHTN @ k_BHSN.transpose(-1, -2)).to(exact)
    if scale != 1.0:
        score_BHTS = score_BHTS * scale
    dense = mask.dense or mask.build_dense(*score_BHTS.shape[-2:], q_BHTN.device)
    if dense.mask.dtype == torch.bool:
        score_BHTS = score_BHTS.masked_fill(~dense.mask, -torch.inf)
    else:
        score_BHTS = score_BHTS + dense.mask
    weight_BHTS = score_BHTS.softmax(-1)
    if dense.has_keys_B1T1 is not None:
        weight_BHTS = torch.where(dense.has_keys_B1T1, weight_BHTS, 0.0)
    weight_BHTS = weight_BHTS.to(v_BHSN.dtype)
    if key_BH is not None and rate_2 is not None:
        weight_BHTS = counter.dropout(weight_BHTS, key_BH, rate_2, impl="torch")
    return weight_BHTS @ v_BHSN
