"""Dispatch tokens to their experts, and combine the experts' outputs.

Shapes: M tokens, K experts per token, N = M K assignments of a token to an expert, D width, E experts.
The place of an assignment is its row in the input of the experts.

    sort:      the places of the assignments, sorted by expert, then by token
    dispatch:  x_ND[place[m, k]] = x_MD[m]
    combine:   y_MD[m]           = sum over k of gate[m, k] y_ND[place[m, k]]

Each place belongs to one token, so every row is read or written once, forward and backward: no sum depends on
the order of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reptrain_kernels.implementation import Implementation, choose_implementation
from reptrain_kernels.ops.permute.reference import (
    Places,
    combine_reference,
    dispatch_reference,
    sort_reference,
)

__all__ = ["Places", "combine", "dispatch", "sort"]


def sort(expert_MK: Tensor, num_experts: int, *, impl: Implementation | None = None) -> tuple[Places, Tensor]:
    """Sort the assignments by expert; the sort is stable.

    Args:
        expert_MK: int64, experts of each token, from 0 to E - 1.
        num_experts: E.
        impl: "torch" or "triton"; None: by the device (see `choose_implementation`). Both give the same.

    Returns:
        The places, and count_E, int64: the number of assignments of each expert.

    Raises:
        ValueError: If the shape or the dtype is wrong.
    """
    if expert_MK.ndim != 2 or expert_MK.dtype != torch.int64:
        raise ValueError(
            f"expert_MK: must be int64 of two axes, but got {expert_MK.dtype} of {tuple(expert_MK.shape)}"
        )
    if choose_implementation(expert_MK.device, impl) == "triton":
        from reptrain_kernels.ops.permute import triton as permute_triton

        order_N, place_MK, count_E = permute_triton.sort(expert_MK, num_experts)
        return Places(order_N, place_MK), count_E
    return sort_reference(expert_MK, num_experts)


def dispatch(x_MD: Tensor, places: Places, *, impl: Implementation | None = None) -> Tensor:
    """Copy each token to all of its places.

    Args:
        x_MD: Floating point, the tokens.
        places: The places of the M x K assignments.
        impl: "torch" or "triton"; None: by the device (see `choose_implementation`).

    Returns:
        x_ND, the dtype of ``x_MD``. Its gradient is summed over k, by Triton in fp32.

    Raises:
        ValueError: If the shapes do not match.
    """
    _check("x_MD", x_MD, len(places.place_MK))
    if choose_implementation(x_MD.device, impl) == "triton":
        from reptrain_kernels.ops.permute import triton as permute_triton

        return permute_triton.dispatch(x_MD, places.place_MK)
    return dispatch_reference(x_MD, places)


def combine(y_ND: Tensor, gate_MK: Tensor, places: Places, *, impl: Implementation | None = None) -> Tensor:
    """Sum the places of each token, weighted by the gates.

    Args:
        y_ND: Floating point, the outputs of the experts.
        gate_MK: fp32, or the dtype of ``y_ND``.
        places: The places of the M x K assignments.
        impl: "torch" or "triton"; None: by the device (see `choose_implementation`). Triton computes in fp32
            and rounds once; torch rounds the gates and at each step.

    Returns:
        y_MD, the dtype of ``y_ND``.

    Raises:
        ValueError: If the shapes do not match.
    """
    _check("y_ND", y_ND, len(places.order_N))
    if gate_MK.shape != places.place_MK.shape:
        raise ValueError(
            f"gate_MK: must have shape {tuple(places.place_MK.shape)}, but got {tuple(gate_MK.shape)}"
        )
    if choose_implementation(y_ND.device, impl) == "triton":
        from reptrain_kernels.ops.permute import triton as permute_triton

        return permute_triton.combine(y_ND, gate_MK, places.place_MK)
    return combine_reference(y_ND, gate_MK, places)


def _check(name: str, x: Tensor, length: int) -> None:
    if x.ndim != 2 or len(x) != length:
        raise ValueError(f"{name}: must have shape [{length}, D], but got {tuple(x.shape)}")
