"""The last product: logits of the vocabulary, or at once what targets lose by them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reptrain_kernels.ops.linear_cross_entropy import Loss, Targets, linear_cross_entropy


class Head(nn.Linear):
    """Logits of states; given targets, their loss, for which on CUDA the whole logits are never in memory.

    It is inside of the model, so that ZeRO 3 has gathered the weight when the loss wants it.
    """

    def __init__(self, width: int, rows: int) -> None:
        super().__init__(width, rows, bias=False)

    def forward(self, x_BTD: Tensor, targets: Targets | None = None) -> Tensor | Loss:
        """logits_BTV in the dtype of the weights or of autocast, or the loss by them."""
        if targets is None:
            return super().forward(x_BTD)
        kind, weight_VD = x_BTD.device.type, self.weight
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x_BTD, weight_VD = x_BTD.to(dtype), weight_VD.to(dtype)
        return linear_cross_entropy(x_BTD, weight_VD, targets)
