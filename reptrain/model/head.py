"""The output head: logits over the vocabulary, or the loss of the targets.

Shapes: B rows, T positions, D width of the residual stream, V rows of the vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reptrain_kernels.ops.linear_cross_entropy import (
    IGNORE,
    Loss,
    Targets,
    cross_entropy,
    linear_cross_entropy,
)


class Distribution(NamedTuple):
    """A distribution over the vocabulary at each position, which a loss imitates besides the targets."""

    logits_BTV: Tensor
    """Its logits; it may have more rows of the vocabulary than the head, or fewer."""
    share: Tensor
    """float64 scalar on the host: share of the divergence in the loss."""


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
        self,
        x_BTD: Tensor,
        targets: Targets | None = None,
        loss_factor: Tensor | None = None,
        imitated: Distribution | None = None,
    ) -> Tensor | Loss:
        """Project states to logits.

        Args:
            x_BTD: Normalized states.
            targets: The target of each position; None returns logits.
            loss_factor: float64 scalar on the host, multiplies the targets' weights; None: 1.
            imitated: A distribution that the loss imitates too; all logits are then in memory. Needs
                ``targets``.

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
        if imitated is None:
            return linear_cross_entropy(x_BTD, weight_VD, targets)
        return imitation_loss(F.linear(x_BTD, weight_VD), targets, imitated)


def imitation_loss(logits_BTV: Tensor, targets: Targets, imitated: Distribution) -> Loss:
    """The loss (1 - share) cross-entropy + share KL(imitated || model), each times the targets' weights.

    Rows of the vocabulary that one of the two does not have are left out of the divergence.

    >>> logits, targets = torch.zeros(1, 1, 2), Targets(torch.tensor([[0]]))
    >>> other = torch.tensor([[[0.75, 0.25]]]).log()
    >>> float(imitation_loss(logits, targets, Distribution(other, torch.tensor(1.0))).loss)
    0.13081...

    Args:
        logits_BTV: The model's logits.
        targets: The target of each position.
        imitated: The other distribution.

    Source:
        Hinton et al., "Distilling the knowledge in a neural network", 2015, at temperature 1.
    """
    loss = cross_entropy(logits_BTV, targets)
    rows = min(logits_BTV.shape[-1], imitated.logits_BTV.shape[-1])
    log_BTV, other_BTV = (
        each[..., :rows].float().log_softmax(-1) for each in (logits_BTV, imitated.logits_BTV)
    )
    divergence_BT = (other_BTV.exp() * (other_BTV - log_BTV)).sum(-1) * (targets.target != IGNORE)
    if targets.weight is not None:
        divergence_BT = divergence_BT * targets.weight
    share = imitated.share.to(loss.loss.dtype)
    return loss._replace(loss=(1 - share) * loss.loss + share * divergence_BT.sum())
