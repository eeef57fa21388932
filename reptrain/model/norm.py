"""Normalization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reptrain.config.model import DecoderConfig


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


class LayerNorm(nn.Module):
    """Centred and divided by the standard deviation, in fp32, with a gain for each unit.

    Args:
        width: Units of a position.
        eps: Added to the variance.
        bias: Whether each unit also has an offset.

    Source:
        Ba et al., "Layer normalization", 2016.
    """

    def __init__(self, width: int, eps: float, *, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Normalize each position."""
        normed_BTD = F.layer_norm(x_BTD.float(), self.weight.shape, eps=self.eps).to(x_BTD.dtype)
        scaled_BTD = normed_BTD * self.weight
        return scaled_BTD if self.bias is None else scaled_BTD + self.bias

    def extra_repr(self) -> str:
        """Shown in the model's printout."""
        return f"{self.weight.shape[0]}, eps={self.eps}, bias={self.bias is not None}"


def build_norm(config: DecoderConfig) -> RMSNorm | LayerNorm:
    """A decoder's norm, of the kind that it asks for."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.d_model, config.norm_eps)
    return LayerNorm(config.d_model, config.norm_eps, bias=config.bias)
