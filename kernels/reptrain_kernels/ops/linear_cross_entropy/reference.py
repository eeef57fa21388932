"""The definition of `linear_cross_entropy` in plain torch, which stores all logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""The target of positions that are not scored; the `ignore_index` of `torch.nn.functional.cross_entropy`."""


class Targets(NamedTuple):
    """What is asked of each position, and how it is counted."""

    target: Tensor
    """int64, any shape [...]; `IGNORE` where nothing is scored."""
    weight: Tensor | None = None
    """fp32 [...]: factor of each target's loss; None: 1. In fp16 it should include the loss scale, because
    Triton computes gradients before the loss is scaled."""
    label_smoothing: Tensor | None = None
    """float64 [] on the host: e, which compiled code takes at run time; None: 0."""
    z_loss: Tensor | None = None
    """float64 [] on the host: c; None: 0."""
    wants_correct: bool = True
    """Whether torch looks for the largest logits, which takes it time. Triton always has them."""


def coefficient(value: float) -> Tensor | None:
    """A coefficient as `Targets` hold it; None for 0."""
    return torch.tensor(value, dtype=torch.float64, device="cpu") if value else None


class Loss(NamedTuple):
    """What the targets lose."""

    loss: Tensor
    """fp32 []: the weighted sum, with smoothing and z-loss; has gradients."""
    nats: Tensor
    """fp32 [...]: the plain cross-entropy of each target; has no gradients."""
    is_correct: Tensor
    """bool [...]; all False where not wanted."""


def cross_entropy(logits: Tensor, targets: Targets) -> Loss:
    """The definition, in plain torch, of logits that are there: shape [..., V]."""
    target, weight, label_smoothing, z_loss, wants_correct = targets
    full = logits.to(torch.promote_types(logits.dtype, torch.float32))
    nats = F.cross_entropy(
        full.flatten(0, -2), target.flatten(), ignore_index=IGNORE, reduction="none"
    ).view_as(target)
    loss = (nats if weight is None else nats * weight).sum()
    added = _added_nats(full, target, label_smoothing, z_loss)
    if added is not None:
        loss = loss + (added if weight is None else added * weight).sum()
    is_correct = torch.zeros_like(target, dtype=torch.bool)
    if wants_correct:
        is_correct = (logits.argmax(-1) == target) & (target != IGNORE)
    return Loss(loss, nats.detach(), is_correct)


def _added_nats(
    full: Tensor, target: Tensor, label_smoothing: Tensor | None, z_loss: Tensor | None
) -> Tensor | None:
    """What smoothing and z-loss add to the nats of each target; None where both are off."""
    if label_smoothing is None and z_loss is None:
        return None
    added = torch.zeros_like(full[..., 0])
    if z_loss is not None:
        added = added + z_loss.to(full.dtype) * full.logsumexp(-1).square()
    if label_smoothing is not None:
        of_target = full.gather(-1, target.clamp(min=0)[..., None])[..., 0]
        added = added + label_smoothing.to(full.dtype) * (of_target - full.mean(-1))
    return added * (target != IGNORE)
