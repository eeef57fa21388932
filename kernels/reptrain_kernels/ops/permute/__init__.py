"""The way of tokens to the places where experts find them, and back.

Shapes: M tokens, K places of a token, N = M K places in all, D width, E experts.

    sort:     the places of assignments sorted by expert, those of one expert in the order of their tokens
    send:     x_ND[place[m, k]] = x_MD[m]
    collect:  y_MD[m]           = sum over k of gate[m, k] y_ND[place[m, k]]

Each place is one token's, so that all is gathered or written once, forward and back: no sum depends on the
order of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reptrain_kernels.implementation import Implementation, choose_implementation


class Places(NamedTuple):
    """A permutation of assignments, told both ways."""

    order_N: Tensor
    """int64: which assignment stands at each place; assignment m K + k is token m's k-th."""
    place_MK: Tensor
    """int64: the place of each assignment."""

    @classmethod
    def of(cls, order_N: Tensor, top_k: int) -> Places:
        """The permutation that ``order_N`` is.

        >>> Places.of(torch.tensor([2, 0, 3, 1]), 2).place_MK.tolist()
        [[1, 3], [0, 2]]
        """
        place_N = torch.arange(len(order_N), device=order_N.device)
        return cls(order_N, torch.empty_like(order_N).scatter_(0, order_N, place_N).view(-1, top_k))


def sort(expert_MK: Tensor, num_experts: int, *, impl: Implementation | None = None) -> tuple[Places, Tensor]:
    """See the module's docstring.

    Args:
        expert_MK: int64, from 0 to E - 1.
        num_experts: E.
        impl: "torch" or "triton"; None: by the device (see `choose_implementation`). Both give the same.

    Returns:
        The places, and count_E, int64: how many assignments each expert has.

    Raises:
        ValueError: If the shape or the dtype does not fit.
    """
    if expert_MK.ndim != 2 or expert_MK.dtype != torch.int64:
        raise ValueError(
            f"expert_MK: must be int64 of two axes, but got {expert_MK.dtype} of {tuple(expert_MK.shape)}"
        )
    if choose_implementation(expert_MK.device, impl) == "triton":
        from reptrain_kernels.ops.permute import triton as permute_triton

        order_N, place_MK, count_E = permute_triton.sort(expert_MK, num_experts)
        return Places(order_N, place_MK), count_E
    expert_N = expert_MK.flatten()
    # Not bincount, whose shape torch.compile cannot tell.
    count_E = expert_N.new_zeros(num_experts).scatter_add(0, expert_N, torch.ones_like(expert_N))
    return Places.of(expert_N.argsort(stable=True), expert_MK.shape[1]), count_E


def send(x_MD: Tensor, places: Places, *, impl: Implementation | None = None) -> Tensor:
    """Each token at all of its places.

    Args:
        x_MD: Floating point.
        places: Of M x K assignments.
        impl: "torch" or "triton"; None: by the device (see `choose_implementation`).

    Returns:
        x_ND, the dtype of ``x_MD``. Its gradient is summed over k, by Triton in fp32.

    Raises:
        ValueError: If the shapes do not fit.
    """
    _check("x_MD", x_MD, len(places.place_MK))
    if choose_implementation(x_MD.device, impl) == "triton":
        from reptrain_kernels.ops.permute import triton as permute_triton

        return permute_triton.send(x_MD, places.place_MK)
    # Spread out before it is sorted: the gradient is then put back, and summed in a fixed order.
    x_MKD = x_MD[:, None].expand(-1, places.place_MK.shape[1], -1)
    return x_MKD.flatten(0, 1)[places.order_N]


def collect(y_ND: Tensor, gate_MK: Tensor, places: Places, *, impl: Implementation | None = None) -> Tensor:
    """Each token's places put together, weighted by the gates.

    Args:
        y_ND: Floating point.
        gate_MK: fp32, or the dtype of ``y_ND``.
        places: Of M x K assignments.
        impl: "torch" or "triton"; None: by the device (see `choose_implementation`). Triton computes in fp32
            and rounds once; torch rounds the gates and at each step.

    Returns:
        y_MD, the dtype of ``y_ND``.

    Raises:
        ValueError: If the shapes do not fit.
    """
    _check("y_ND", y_ND, len(places.order_N))
    if gate_MK.shape != places.place_MK.shape:
        raise ValueError(
            f"gate_MK: must have shape {tuple(places.place_MK.shape)}, but got {tuple(gate_MK.shape)}"
        )
    if choose_implementation(y_ND.device, impl) == "triton":
        from reptrain_kernels.ops.permute import triton as permute_triton

        return permute_triton.collect(y_ND, gate_MK, places.place_MK)
    y_MKD = y_ND[places.place_MK.flatten()].view(*gate_MK.shape, -1)
    return (y_MKD * gate_MK[..., None].to(y_ND.dtype)).sum(1)


def _check(name: str, x: Tensor, length: int) -> None:
    if x.ndim != 2 or len(x) != length:
        raise ValueError(f"{name}: must have shape [{length}, D], but got {tuple(x.shape)}")
