"""Dispatch and combine of tokens at the sizes of published models: compiled, modeled, timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from reptrain_kernels.bench.operation import Operation, Ways, Work, element_bytes, own_ways
from reptrain_kernels.implementation import Implementation
from reptrain_kernels.ops.permute import combine, dispatch, sort


class PermuteShape(NamedTuple):
    """M tokens of D units with K of E experts each, there and back."""

    name: str
    D: int
    K: int = 2
    E: int = 16
    M: int = 8192
    dtype: torch.dtype = torch.bfloat16


SHAPES = [
    PermuteShape("MoE-Base", 768),
    PermuteShape("MoE-Large", 1024),
    PermuteShape("Switch-Base-128", 768, 1, 128),
    PermuteShape("Mixtral 8x7B", 4096, 2, 8),
]


def _launch(shape: PermuteShape) -> Callable[[], object]:
    from reptrain_kernels.ops.permute.triton import (
        launch_combine,
        launch_combine_backward,
        launch_dispatch,
        launch_sort,
    )

    x_MD = torch.empty(shape.M, shape.D, dtype=shape.dtype, device="meta")
    y_ND = x_MD.new_empty(shape.M * shape.K, shape.D)
    gate_MK = torch.empty(shape.M, shape.K, device="meta")
    place_MK = torch.empty_like(gate_MK, dtype=torch.int64)
    return lambda: (
        launch_sort(place_MK, shape.E),
        launch_dispatch(x_MD, place_MK),
        launch_combine(y_ND, gate_MK, place_MK),
        launch_combine_backward(x_MD, y_ND, gate_MK, place_MK),
    )


def _moved(shape: PermuteShape, capability: int) -> list[list[Work]]:
    """The gradient of `dispatch`: a `combine` without gates."""
    tokens = shape.M * shape.D * element_bytes(shape.dtype)
    rows, places, gates = shape.K * tokens, 8 * shape.M * shape.K, 4 * shape.M * shape.K
    units, choices = shape.M * shape.K * shape.D, shape.M * shape.K * shape.E
    return [
        [
            # Compared and added by expert; a running sum besides.
            Work("count", integers=2 * choices, memory_bytes=places),
            Work("place", integers=6 * choices, memory_bytes=3 * places),
            Work("dispatch", memory_bytes=tokens + rows + places),
            Work("combine", floats=2 * units, memory_bytes=rows + tokens + places + gates),
        ],
        [
            Work("combine", floats=units, memory_bytes=rows + tokens + places),
            Work("combine_gradient", floats=2 * units, memory_bytes=tokens + 2 * rows + places + 2 * gates),
        ],
    ]


def _needed(shape: PermuteShape) -> list[Work]:
    """Every row moved once, and every expert and place."""
    return [
        Work(
            what,
            floats=sum(kernel.floats for kernel in kernels),
            memory_bytes=sum(kernel.memory_bytes for kernel in kernels if kernel.what != "count"),
        )
        for what, kernels in zip(("forward", "backward"), _moved(shape, 80), strict=True)
    ]


def _ways(shape: PermuteShape, device: str) -> Ways:
    """There and back, since a layer does both."""
    x_MD = torch.randn(shape.M, shape.D, dtype=shape.dtype, device=device, requires_grad=True)
    gate_MK = torch.rand(shape.M, shape.K, device=device, requires_grad=True)
    expert_MK = torch.rand(shape.M, shape.E, device=device).topk(shape.K).indices

    def both(impl: Implementation) -> Tensor:
        places, _ = sort(expert_MK, shape.E, impl=impl)
        return combine(dispatch(x_MD, places, impl=impl), gate_MK, places, impl=impl)

    calls = own_ways(both)
    return Ways([x_MD, gate_MK], calls)


OPERATION = Operation(
    name="permute",
    shapes=SHAPES,
    launch=_launch,
    needed=_needed,
    moved=_moved,
    ways=_ways,
    shown=("MoE-Base", "Mixtral 8x7B"),
)
