"""The definition of `rotate` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_reference(x_BTHN: Tensor, cos_TM: Tensor, sin_TM: Tensor) -> Tensor:
    """The definition in plain torch; in fp32, or float64 for inputs of float64."""
    a_BTHM, b_BTHM = x_BTHN.to(torch.promote_types(x_BTHN.dtype, torch.float32)).chunk(2, dim=-1)
    cos_T1M, sin_T1M = cos_TM[..., None, :], sin_TM[..., None, :]
    rotated_BTHN = torch.cat(
        (a_BTHM * cos_T1M - b_BTHM * sin_T1M, b_BTHM * cos_T1M + a_BTHM * sin_T1M), dim=-1
    )
    return rotated_BTHN.to(x_BTHN.dtype)
