"""Rotary embedding at the heads of published models: compiled, modeled, timed.

Sizes: B rows, T positions, H query heads, K key heads, N width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from reptrain_kernels.bench.operation import Operation, Ways, Work, compiled_way, element_bytes, installed
from reptrain_kernels.ops.rope import rotate


class RopeShape(NamedTuple):
    """The queries and keys of a model."""

    name: str
    H: int
    K: int
    N: int
    B: int = 4
    T: int = 2048
    documents: bool = False
    """Whether each row has positions of its own."""
    dtype: torch.dtype = torch.bfloat16


SHAPES = [
    RopeShape("Llama-1B", 32, 4, 64),
    RopeShape("Llama-1B documents", 32, 4, 64, documents=True),
    RopeShape("Llama-7B", 32, 32, 128),
    RopeShape("Llama-7B documents", 32, 32, 128, documents=True),
    RopeShape("head 256", 8, 8, 256),
]


def _tensors(shape: RopeShape, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q_BTHN, k_BTKN = (
        torch.randn(shape.B, shape.T, heads, shape.N, dtype=shape.dtype, device=device)
        for heads in (shape.H, shape.K)
    )
    rows = (shape.B,) if shape.documents else ()
    angle_TM = torch.randn(*rows, shape.T, shape.N // 2, device=device)
    return q_BTHN, k_BTKN, angle_TM.cos(), angle_TM.sin()


def _launch(shape: RopeShape) -> Callable[[], object]:
    from reptrain_kernels.ops.rope.triton import launch_rotate

    tensors = _tensors(shape, "meta")
    # Backward is the same kernel with another number.
    return lambda: launch_rotate(*tensors, 1.0)


def _needed(shape: RopeShape) -> list[Work]:
    """Queries and keys read and written once, the angles read once."""
    units = shape.B * shape.T * (shape.H + shape.K) * shape.N
    angles = (shape.B if shape.documents else 1) * shape.T * shape.N * 4
    moved = 2 * units * element_bytes(shape.dtype) + angles
    return [Work(what, floats=2 * units, memory_bytes=moved) for what in ("forward", "backward")]


def _moved(shape: RopeShape, capability: int) -> list[list[Work]]:
    """The same, and addresses: each line's angles are found again for its head, in a cache."""
    units = shape.B * shape.T * (shape.H + shape.K) * shape.N
    return [[work._replace(integers=2 * units)] for work in _needed(shape)]


def _ways(shape: RopeShape, device: str) -> Ways:
    """Ours; the definition, eager and compiled; Liger's, which comes last: it writes over its inputs."""
    q, k, cos, sin = _tensors(shape, device)
    q.requires_grad_()
    k.requires_grad_()
    calls = {
        "triton": lambda: rotate(q, k, cos, sin, impl="triton"),
        "torch": lambda: rotate(q, k, cos, sin, impl="torch"),
    }
    calls["torch.compile"] = compiled_way(calls["torch"])
    liger = installed("liger_kernel.transformers.functional")
    if liger is not None:
        # Its angles are repeated for both halves of a head, and have an axis of rows.
        angles = [torch.cat((x, x), -1).view(-1, shape.T, shape.N) for x in (cos, sin)]

        def fused() -> tuple[Tensor, ...]:
            turned = liger.liger_rope(q.transpose(1, 2), k.transpose(1, 2), *angles)
            return tuple(x.transpose(1, 2) for x in turned)

        calls["liger"] = fused
    return Ways([q, k], calls)


OPERATION = Operation(
    name="rope",
    shapes=SHAPES,
    launch=_launch,
    needed=_needed,
    moved=_moved,
    ways=_ways,
    shown=("Llama-1B", "Llama-7B", "Llama-7B documents", "head 256"),
)
