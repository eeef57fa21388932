"""Normalization."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Division by the root of the mean square, computed in fp32, and a gain for each unit.

    Args:
        width: Units of a position.
        eps: Added to the mean square.

    Source:
        Zhang & Sennrich, "Root mean square layer normalization", 2019.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Normalize each position."""
        full_BTD = x_BTD.float()
        scale_BT1 = torch.rsqrt(full_BTD.square().mean(-1, keepdim=True) + self.eps)
        return (full_BTD * scale_BT1).to(x_BTD.dtype) * self.weight

    def extra_repr(self) -> str:
        """Shown in the model's printout."""
        return f"{self.weight.shape[0]}, eps={self.eps}"
