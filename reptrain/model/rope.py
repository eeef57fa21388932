"""The angles of rotary position embeddings (`reptrain_kernels.ops.rope` applies them).

Shapes: B rows, T positions, N width of a head, M = N / 2 frequencies.

Source:
    Su et al., "RoFormer: Enhanced transformer with rotary position embedding", 2021.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from reptrain.config.rope import LinearRope, RopeScaling


class Rotation(NamedTuple):
    """Cosines and sines of the angles, fp32; [B, T, M] if each row has its own positions."""

    cos_TM: Tensor
    sin_TM: Tensor


def rotation(
    num_positions: int,
    head_dim: int,
    theta: float,
    device: torch.device,
    scaling: RopeScaling | None = None,
) -> Rotation:
    """The rotation of positions 0 ... num_positions - 1.

    It is recomputed in each forward pass, because casting the model to bf16 would round a buffer.

    Args:
        num_positions: T.
        head_dim: N, even.
        theta: Base of the frequencies.
        device: Device of the result.
        scaling: Scaling of the frequencies; None: no scaling.
    """
    exponent_M = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    position_T = torch.arange(num_positions, dtype=torch.float32, device=device)
    frequency_M = theta**-exponent_M
    if scaling is not None:
        frequency_M = _scaled(frequency_M, scaling)
    angle_TM = torch.outer(position_T, frequency_M)
    return Rotation(angle_TM.cos(), angle_TM.sin())


def _scaled(frequency_M: Tensor, scaling: RopeScaling) -> Tensor:
    """Scale frequencies, in radians per position; `reptrain.config.rope` gives the formulas and sources."""
    stretched_M = frequency_M / scaling.factor
    if isinstance(scaling, LinearRope):
        return stretched_M
    turns_M = scaling.original_max_positions * frequency_M / (2 * math.pi)
    kept_M = (turns_M - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return torch.lerp(stretched_M, frequency_M, kept_M.clamp(0, 1))
