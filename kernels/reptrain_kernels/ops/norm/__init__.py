"""Residual add and RMSNorm in one pass: dropout of the branch, sum, normalization.

Shapes: B rows, T positions, D units. `counter.dropout` drops units of the branch and, with one random word
per row, the whole branch (DropPath):

    s[b, t, d] = x[b, t, d] + path(b) dropped(branch)[b, t, d]
    y[b, t, d] = s[b, t, d] / sqrt(mean over d of s[b, t, d]**2 + eps) weight[d]

Sources:
    Zhang & Sennrich, "Root mean square layer normalization", 2019.
    Huang et al., "Deep networks with stochastic depth", 2016.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reptrain_kernels import counter
from reptrain_kernels.implementation import Implementation, choose_implementation
from reptrain_kernels.ops.norm.reference import Drops, PackedDrops, drop_reference, rms_norm_reference

__all__ = ["Drops", "join", "join_and_norm", "rms_norm"]


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, *, impl: Implementation | None = None) -> Tensor:
    """RMS norm over the last axis, with the mean square in fp32.

    Args:
        x: Floating point, shape [..., D].
        weight_D: The gain of each unit.
        eps: Added to the mean square.
        impl: "torch" or "triton"; None: by the device (see `choose_implementation`).

    Returns:
        The shape of ``x``, in the wider dtype of ``x`` and ``weight_D``.

    Raises:
        ValueError: If the shapes do not match, or if D is too large for Triton.
    """
    _check_weight(x, weight_D)
    if choose_implementation(x.device, impl) == "torch":
        return rms_norm_reference(x, weight_D, eps)
    from reptrain_kernels.ops.norm.triton import norm_forward

    return norm_forward(x, None, weight_D, None, None, None, None, eps)[1]


def join(
    x_BTD: Tensor, branch_BTD: Tensor, drops: Drops | None = None, *, impl: Implementation | None = None
) -> Tensor:
    """Residual add: ``x_BTD`` plus the branch after dropout, s in the formulas above.

    Args:
        x_BTD: The residual stream. Without dropout, it and the branch may have any shape.
        branch_BTD: The branch, of the same shape.
        drops: Dropout of the branch; None: none.
        impl: As in `rms_norm`. Both are equal bit for bit.

    Returns:
        s_BTD, of the wider dtype.

    Raises:
        ValueError: As `rms_norm`, or if a key or a rate is not valid.
    """
    if drops is not None and counter.has_position_keys(drops.unit_key_B, branch_BTD):
        drops = drops.by_position()
        return join(x_BTD.unsqueeze(2), branch_BTD.unsqueeze(2), drops, impl=impl).squeeze(2)
    packed = _checked(x_BTD, branch_BTD, drops)
    drops_nothing = packed.unit_key_B is None and packed.path_key_B is None
    if drops_nothing or choose_implementation(x_BTD.device, impl) == "torch":
        return x_BTD + drop_reference(branch_BTD, packed)
    from reptrain_kernels.ops.norm.triton import join_forward

    dtype = torch.promote_types(x_BTD.dtype, branch_BTD.dtype)
    return join_forward(x_BTD, branch_BTD, *packed, dtype)


def join_and_norm(
    x_BTD: Tensor,
    branch_BTD: Tensor,
    weight_D: Tensor,
    eps: float,
    drops: Drops | None = None,
    *,
    impl: Implementation | None = None,
) -> tuple[Tensor, Tensor]:
    """`join`, and `rms_norm` of its result, in one pass.

    Args:
        x_BTD: As in `join`.
        branch_BTD: As in `join`.
        weight_D: As in `rms_norm`.
        eps: As in `rms_norm`.
        drops: As in `join`.
        impl: As in `join`.

    Returns:
        s_BTD and y_BTD.

    Raises:
        ValueError: As `join` and `rms_norm`.
    """
    if drops is not None and counter.has_position_keys(drops.unit_key_B, branch_BTD):
        lines = x_BTD.unsqueeze(2), branch_BTD.unsqueeze(2)
        stream_BT1D, normed_BT1D = join_and_norm(*lines, weight_D, eps, drops.by_position(), impl=impl)
        return stream_BT1D.squeeze(2), normed_BT1D.squeeze(2)
    packed = _checked(x_BTD, branch_BTD, drops)
    _check_weight(x_BTD, weight_D)
    if choose_implementation(x_BTD.device, impl) == "torch":
        stream_BTD = x_BTD + drop_reference(branch_BTD, packed)
        return stream_BTD, rms_norm_reference(stream_BTD, weight_D, eps)
    from reptrain_kernels.ops.norm.triton import norm_forward

    return norm_forward(x_BTD, branch_BTD, weight_D, *packed, eps)[:2]


def _check_weight(x: Tensor, weight_D: Tensor) -> None:
    if weight_D.shape != x.shape[-1:]:
        raise ValueError(f"weight_D: must have shape {tuple(x.shape[-1:])}, but got {tuple(weight_D.shape)}")


def _checked(x_BTD: Tensor, branch_BTD: Tensor, drops: Drops | None) -> PackedDrops:
    """What is dropped, with a key only where a number as rate is above 0."""
    if branch_BTD.shape != x_BTD.shape:
        raise ValueError(
            f"branch_BTD: must have shape {tuple(x_BTD.shape)}, but got {tuple(branch_BTD.shape)}"
        )
    drops = drops or Drops()
    if drops.unit_key_B is not None:
        counter.check_key("unit_key_B", drops.unit_key_B, branch_BTD)
    if drops.path_key_B is not None:
        counter.check_key("path_key_B", drops.path_key_B, branch_BTD)
    return PackedDrops(
        *counter.key_and_rate(drops.unit_key_B, drops.unit_rate),
        *counter.key_and_rate(drops.path_key_B, drops.path_rate),
    )
