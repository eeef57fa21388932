"""`send` and `collect` of `permute` at the sparse layers of published models: compiled, modelled, timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from reptrain_kernels.bench.operation import Operation, Ways, Work, compiled_way, element_bytes
from reptrain_kernels.permute import Places, collect, send


class PermuteShape(NamedTuple):
    """M tokens of D units with K places each, there and back."""

    name: str
    D: int
    K: int = 2
    M: int = 8192
    dtype: torch.dtype = torch.bfloat16


SHAPES = [
    PermuteShape("MoE-Base", 768),
    PermuteShape("MoE-Large", 1024),
    PermuteShape("Switch-Base", 768, 1),
    PermuteShape("Mixtral 8x7B", 4096),
]


def _launch(shape: PermuteShape) -> Callable[[], object]:
    from reptrain_kernels.permute_triton import launch_collect, launch_collect_backward, launch_send

    x_MD = torch.empty(shape.M, shape.D, dtype=shape.dtype, device="meta")
    y_ND = x_MD.new_empty(shape.M * shape.K, shape.D)
    gate_MK = torch.empty(shape.M, shape.K, device="meta")
    place_MK = torch.empty_like(gate_MK, dtype=torch.int64)
    return lambda: (
        launch_send(x_MD, place_MK),
        launch_collect(y_ND, gate_MK, place_MK),
        launch_collect_backward(x_MD, y_ND, gate_MK, place_MK),
    )


def _moved(shape: PermuteShape, capability: int) -> list[list[Work]]:
    """The gradient of what was sent is collected, without gates."""
    tokens = shape.M * shape.D * element_bytes(shape.dtype)
    rows, places, gates = shape.K * tokens, 8 * shape.M * shape.K, 4 * shape.M * shape.K
    units = shape.M * shape.K * shape.D
    return [
        [
            Work("send", memory_bytes=tokens + rows + places),
            Work("collect", floats=2 * units, memory_bytes=rows + tokens + places + gates),
        ],
        [
            Work("collect", floats=units, memory_bytes=rows + tokens + places),
            Work("collect_gradient", floats=2 * units, memory_bytes=tokens + 2 * rows + places + 2 * gates),
        ],
    ]


def _needed(shape: PermuteShape) -> list[Work]:
    """Every row moved once: what these kernels do."""
    return [
        Work(
            what,
            floats=sum(kernel.floats for kernel in kernels),
            memory_bytes=sum(kernel.memory_bytes for kernel in kernels),
        )
        for what, kernels in zip(("forward", "backward"), _moved(shape, 80), strict=True)
    ]


def _ways(shape: PermuteShape, device: str) -> Ways:
    """There and back, since a layer does both."""
    x_MD = torch.randn(shape.M, shape.D, dtype=shape.dtype, device=device, requires_grad=True)
    gate_MK = torch.rand(shape.M, shape.K, device=device, requires_grad=True)
    places = Places.of(torch.randperm(shape.M * shape.K, device=device), shape.K)

    def both(impl: str) -> Tensor:
        return collect(send(x_MD, places, impl=impl), gate_MK, places, impl=impl)

    calls = {"triton": lambda: both("triton"), "torch": lambda: both("torch")}
    calls["torch.compile"] = compiled_way(calls["torch"])
    return Ways([x_MD, gate_MK], calls)


PERMUTE_OPERATION = Operation(
    name="permute",
    shapes=SHAPES,
    launch=_launch,
    needed=_needed,
    moved=_moved,
    ways=_ways,
    shown=("MoE-Base", "Mixtral 8x7B"),
)
