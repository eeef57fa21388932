"""Logits of the vocabulary and the loss of the targets in one operation, without storing all logits.

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

import torch
import torch.nn.functional as F
from torch import Tensor

from reptrain_kernels.implementation import Implementation, choose_implementation
from reptrain_kernels.ops.linear_cross_entropy.reference import (
    IGNORE,
    Loss,
    Targets,
    coefficient,
    cross_entropy,
)

__all__ = ["IGNORE", "Loss", "Targets", "coefficient", "cross_entropy", "linear_cross_entropy"]


def linear_cross_entropy(
    x: Tensor, head_VD: Tensor, targets: Targets, *, impl: Implementation | None = None
) -> Loss:
    """Cross-entropy of ``targets`` under the logits ``x @ head_VD.T``.

    Args:
        x: fp32, bf16 or fp16, shape [..., D]; in torch also float64.
        head_VD: The weight of the output head, of the same dtype.
        targets: The target of each position of ``x``.
        impl: "torch" or "triton"; None: by the device (see `choose_implementation`). Both round the logits to
            the dtype of ``x`` and then compute in fp32. Triton keeps only `triton.CHUNK_BYTES` of logits in
            memory. It computes the gradients in the forward pass, and the backward pass scales them in place
            by the gradient of the loss, so it can run only once.

    Raises:
        ValueError: If shapes or dtypes do not match.
    """
    _check(x, head_VD, targets)
    if choose_implementation(x.device, impl) == "torch":
        return cross_entropy(F.linear(x, head_VD), targets)
    from reptrain_kernels.ops.linear_cross_entropy.triton import linear_cross_entropy_forward

    has_gradient = torch.is_grad_enabled() and (x.requires_grad or head_VD.requires_grad)
    target, *how = targets[:-1]
    return Loss(*linear_cross_entropy_forward(x, head_VD, target, *how, has_gradient)[:3])


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
