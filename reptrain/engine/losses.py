"""What is predicted, in nats, and what a run may add to that in training.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reptrain.batch.objectives import IGNORE


def token_nats(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Cross-entropy in nats of each target, fp32 [B, T]; 0 where the target is ignored."""
    flat = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return flat.view_as(targets_BT)


def added_nats(
    logits_BTV: Tensor, targets_BT: Tensor, *, label_smoothing: float, z_loss: float
) -> Tensor | None:
    """What the regularizers add to the nats of each target; None where they are off.

    Smoothing gives the target 1 - e and spreads e evenly over the vocabulary (Szegedy et al. 2016): over the
    plain cross-entropy that is e (logit of the target - mean logit). The z-loss is the square of the logits'
    logsumexp (de Brébisson & Vincent 2016; Chowdhery et al. 2022).

    Args:
        logits_BTV: Of the model.
        targets_BT: int64; `IGNORE` where nothing is scored.
        label_smoothing: e.
        z_loss: Weight of the z-loss.

    Returns:
        fp32 [B, T]; 0 where the target is ignored.
    """
    if label_smoothing == 0 and z_loss == 0:
        return None
    is_scored_BT, logits_BTV = targets_BT != IGNORE, logits_BTV.float()
    added_BT = torch.zeros_like(is_scored_BT, dtype=torch.float32)
    if z_loss > 0:
        added_BT = added_BT + z_loss * logits_BTV.logsumexp(-1).square()
    if label_smoothing > 0:
        target_BT1 = targets_BT.clamp(min=0)[..., None]
        gap_BT = logits_BTV.gather(-1, target_BT1)[..., 0] - logits_BTV.mean(-1)
        added_BT = added_BT + label_smoothing * gap_BT
    return added_BT * is_scored_BT
