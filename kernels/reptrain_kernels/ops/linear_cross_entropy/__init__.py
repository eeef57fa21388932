"""Logits of the vocabulary and what the targets lose by them, in one operation without the whole logits.

Shapes: N targets, D units, V ids. With z = H x, for target t of weight w, of smoothing e and z-loss c:

    nats[n]    = logsumexp(z[n]) - z[n, t]
    loss       = sum over n of w[n] (nats[n] + e (z[n, t] - mean over v of z[n, v]) + c logsumexp(z[n])**2)
    correct[n] = whether t is the first of the largest z[n]

An ignored target loses nothing and is never correct.

Sources:
    Smoothing gives the target 1 - e and spreads e evenly over the vocabulary (Szegedy et al., "Rethinking the
    Inception architecture", 2016): over the plain cross-entropy that is what stands above. z-loss: de
    Brébisson & Vincent, "The Z-loss", 2016; Chowdhery et al., "PaLM", 2022.
    The gradient is computed chunk by chunk in the forward pass as in Hsu et al., "Liger kernel", 2024.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reptrain_kernels.implementation import Implementation, choose_implementation

IGNORE = -100
"""Target of what is not scored, as `torch.nn.functional.cross_entropy` has it."""


class Targets(NamedTuple):
    """What is asked of each position, and how it is counted."""

    target: Tensor
    """int64, any shape [...]; `IGNORE` where nothing is scored."""
    weight: Tensor | None = None
    """fp32 [...]: what a target's loss is multiplied by; None: 1. In fp16 it should hold the loss scale, for
    Triton computes gradients before it knows what the loss is multiplied by."""
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


def linear_cross_entropy(
    x: Tensor, head_VD: Tensor, targets: Targets, *, impl: Implementation | None = None
) -> Loss:
    """What ``targets`` lose by the logits ``x @ head_VD.T``.

    Args:
        x: fp32, bf16 or fp16, shape [..., D]; in torch also float64.
        head_VD: The same dtype.
        targets: One for each position of ``x``.
        impl: "torch" or "triton"; None: by the device (see `choose_implementation`). Both round the logits to
            the dtype of ``x`` and go on in fp32. Triton has of the logits so many rows at a time as fill
            `linear_cross_entropy_triton.CHUNK_BYTES`, and in the forward pass computes the gradients with
            the loss; they are multiplied in the backward pass by the loss's own, for which a graph can be
            gone through once only.

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    _check(x, head_VD, targets)
    if choose_implementation(x.device, impl) == "torch":
        return cross_entropy(F.linear(x, head_VD), targets)
    from reptrain_kernels.ops.linear_cross_entropy.triton import linear_cross_entropy_forward

    has_gradient = torch.is_grad_enabled() and (x.requires_grad or head_VD.requires_grad)
    target, *how = targets[:-1]
    return Loss(*linear_cross_entropy_forward(x, head_VD, target, *how, has_gradient)[:3])


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


def _check(x: Tensor, head_VD: Tensor, targets: Targets) -> None:
    if head_VD.ndim != 2 or head_VD.shape[1] != x.shape[-1] or head_VD.dtype != x.dtype:
        raise ValueError(
            f"head_VD: must be {x.dtype}, [ids, {x.shape[-1]}], but got {head_VD.dtype} of"
            f" {tuple(head_VD.shape)}"
        )
    if targets.target.shape != x.shape[:-1] or targets.target.dtype != torch.int64:
        raise ValueError(
            f"target: must be int64 of shape {tuple(x.shape[:-1])}, but got {targets.target.dtype} of"
            f" {tuple(targets.target.shape)}"
        )
    if targets.weight is not None and targets.weight.shape != targets.target.shape:
        raise ValueError(
            f"weight: must have shape {tuple(targets.target.shape)}, but got {tuple(targets.weight.shape)}"
        )
    for name in ("label_smoothing", "z_loss"):
        coefficient = getattr(targets, name)
        if coefficient is not None and (coefficient.ndim or coefficient.device.type != "cpu"):
            raise ValueError(
                f"{name}: must be a number on the host, but got shape {tuple(coefficient.shape)} on"
                f" {coefficient.device}"
            )
