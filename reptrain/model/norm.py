"""Normalization of the residual stream, fused with the residual add before it.

A norm takes the branch and adds it to the residual stream, so that on CUDA both are one pass over the stream.

Shapes: B rows, T positions, D width of the residual stream.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reptrain.config.model import DecoderConfig
from reptrain_kernels.implementation import choose_implementation
from reptrain_kernels.ops.norm import Drops, join, join_and_norm, rms_norm


class RMSNorm(nn.Module):
    """Divides by the root mean square, computed in fp32, and multiplies by a learned gain.

    Args:
        width: D.
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
        """Normalize each position, after a residual add if there is a branch.

        Args:
            x_BTD: The residual stream.
            branch_BTD: Added to the residual stream first; None: no residual add.
            drops: Dropout of the branch; None: no dropout.

        Returns:
            The normalized states; with a branch, the new residual stream and its normalized states.
        """
        if branch_BTD is None:
            return rms_norm(x_BTD, self.weight, self.eps)
        return join_and_norm(x_BTD, branch_BTD, self.weight, self.eps, drops)

    def extra_repr(self) -> str:
        """The arguments that `repr` shows."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class LayerNorm(nn.Module):
    """Subtracts the mean and divides by the standard deviation, in fp32, and multiplies by a learned gain.

    On CUDA this is one kernel, which rounds once. Elsewhere bf16 is rounded after each step.

    Args:
        width: D.
        eps: Added to the variance.
        bias: Whether to add a learned bias.

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
        """Normalize each position, after a residual add if there is a branch (see `RMSNorm.forward`)."""
        stream_BTD = x_BTD if branch_BTD is None else join(x_BTD, branch_BTD, drops)
        normed_BTD = self._normalize(stream_BTD)
        return normed_BTD if branch_BTD is None else (stream_BTD, normed_BTD)

    def _normalize(self, x_BTD: Tensor) -> Tensor:
        shape = self.weight.shape
        if choose_implementation(x_BTD.device) == "triton" and x_BTD.dtype == self.weight.dtype:
            return F.layer_norm(x_BTD, shape, self.weight, self.bias, self.eps)
        normed_BTD = F.layer_norm(x_BTD.float(), shape, eps=self.eps).to(x_BTD.dtype) * self.weight
        return normed_BTD if self.bias is None else normed_BTD + self.bias

    def extra_repr(self) -> str:
        """The arguments that `repr` shows."""
        return f"{self.weight.shape[0]}, eps={self.eps}, bias={self.bias is not None}"


def build_norm(config: DecoderConfig) -> RMSNorm | LayerNorm:
    """The norm that a decoder's configuration names."""
    match config.norm:
        case "rmsnorm":
            return RMSNorm(config.d_model, config.norm_eps)
        case "layernorm":
            return LayerNorm(config.d_model, config.norm_eps, bias=config.bias)
