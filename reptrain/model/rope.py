"""Rotary position embedding.

Shapes: B rows, T positions, H heads, N width of a head, M = N / 2 frequencies.

Source:
    Su et al., "RoFormer: Enhanced transformer with rotary position embedding", 2021. Unit i is paired
    with unit i + N/2, as published Llama weights in Hugging Face folders expect.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and sines of the angles, fp32; [B, T, M] where each row has positions of its own."""

    cos_TM: Tensor
    sin_TM: Tensor


def rotation(num_positions: int, head_dim: int, theta: float, device: torch.device) -> Rotation:
    """The rotation of positions 0 ... num_positions - 1.

    Computed where it is used: a buffer would be rounded when the model is cast to bf16.

    Args:
        num_positions: T.
        head_dim: N, even.
        theta: Base of the frequencies.
        device: Of the result.
    """
    exponent_M = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    position_T = torch.arange(num_positions, dtype=torch.float32, device=device)
    angle_TM = torch.outer(position_T, theta**-exponent_M)
    return Rotation(angle_TM.cos(), angle_TM.sin())


def rotate(x_BTHN: Tensor, by: Rotation) -> Tensor:
    """Rotate the pairs of units of each head by its position's angles, in fp32.

    Example:
        One head of width 2, position 1, theta 1: (1, 0) becomes (cos 1, sin 1).
    """
    a_BTHM, b_BTHM = x_BTHN.float().chunk(2, dim=-1)
    cos_T1M, sin_T1M = by.cos_TM[..., None, :], by.sin_TM[..., None, :]
    rotated_BTHN = torch.cat(
        (a_BTHM * cos_T1M - b_BTHM * sin_T1M, b_BTHM * cos_T1M + a_BTHM * sin_T1M), dim=-1
    )
    return rotated_BTHN.to(x_BTHN.dtype)
