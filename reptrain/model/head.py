"""The output head: logits over the vocabulary, or the loss of the targets.

Shapes: B rows, T positions, D width of the residual stream, V rows of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reptrain_kernels.ops.linear_cross_entropy import Loss, Targets, linear_cross_entropy


class Head(nn.Linear):
    """A linear layer without bias that returns the loss if it gets targets.

    On CUDA the loss never materializes all logits. The head is part of the model so that ZeRO 3 gathers its
    weight before the loss.

    Args:
        width: D.
        rows: V.
    """

    def __init__(self, width: int, rows: int) -> None:
        super().__init__(width, rows, bias=False)

    def forward(
        self, x_BTD: Tensor, targets: Targets | None = None, loss_factor: Tensor | None = None
    ) -> Tensor | Loss:
        """Project states to logits.

        Args:
            x_BTD: Normalized states.
            targets: The target of each position; None returns logits.
            loss_factor: float64 scalar on the host, multiplies the targets' weights; None: 1.

        Returns:
            logits_BTV, in the dtype of the weights or of autocast; with targets, their loss.
        """
        if targets is None:
            return super().forward(x_BTD)
        if loss_factor is not None and targets.weight is not None:
            targets = targets._replace(weight=targets.weight * loss_factor.to(targets.weight.dtype))
        kind, weight_VD = x_BTD.device.type, self.weight
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x_BTD, weight_VD = x_BTD.to(dtype), weight_VD.to(dtype)
        return linear_cross_entropy(x_BTD, weight_VD, targets)
