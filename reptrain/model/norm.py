"""Normalization of the residual stream, and the joining of a branch that comes right before it.

A branch is joined by the norm, in its own call, so that on CUDA both are one pass over the stream.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reptrain.config.model import DecoderConfig
from reptrain_kernels.ops.norm import Drops, join, join_and_norm, rms_norm


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

    def forward(
        self, x_BTD: Tensor, branch_BTD: Tensor | None = None, drops: Drops | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalize each position.

        Args:
            x_BTD: The stream.
            branch_BTD: Joins the stream before; None: nothing does.
            drops: What of the branch is dropped; None: nothing.

        Returns:
            The normed positions; with a branch the stream that it has joined, and these.
        """
        if branch_BTD is None:
            return rms_norm(x_BTD, self.weight, self.eps)
        return join_and_norm(x_BTD, branch_BTD, self.weight, self.eps, drops)

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

    def forward(
        self, x_BTD: Tensor, branch_BTD: Tensor | None = None, drops: Drops | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalize each position (see `RMSNorm`)."""
        stream_BTD = x_BTD if branch_BTD is None else join(x_BTD, branch_BTD, drops)
        normed_BTD = F.layer_norm(stream_BTD.float(), self.weight.shape, eps=self.eps).to(stream_BTD.dtype)
        normed_BTD = normed_BTD * self.weight
        if self.bias is not None:
            normed_BTD = normed_BTD + self.bias
        return normed_BTD if branch_BTD is None else (stream_BTD, normed_BTD)

    def extra_repr(self) -> str:
        """Shown in the model's printout."""
        return f"{self.weight.shape[0]}, eps={self.eps}, bias={self.bias is not None}"


def build_norm(config: DecoderConfig) -> RMSNorm | LayerNorm:
    """A decoder's norm, of the kind that it asks for."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.d_model, config.norm_eps)
    return LayerNorm(config.d_model, config.norm_eps, bias=config.bias)
