"""Residual add and RMSNorm at the widths of published models: compiled, modeled, timed.

Sizes: B rows, T positions, D units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from reptrain_kernels import counter
from reptrain_kernels.bench.operation import (
    DROPOUT_INTEGERS,
    Operation,
    Ways,
    Work,
    element_bytes,
    installed,
    own_ways,
)
from reptrain_kernels.ops.norm import Drops, join, join_and_norm, rms_norm

EPS = 1e-6


class NormShape(NamedTuple):
    """A branch that joins, and a norm, of a model."""

    name: str
    D: int
    what: Literal["norm", "join", "both"] = "both"
    units: float = 0.0
    path: float = 0.0
    B: int = 16
    T: int = 512
    dtype: torch.dtype = torch.bfloat16
    """Of the branch."""
    stream: torch.dtype = torch.bfloat16
    """Of the stream and the weight: fp32 under autocast."""

    @property
    def drops(self) -> bool:
        """Whether anything is dropped."""
        return self.what != "norm" and self.units + self.path > 0


SHAPES = [
    NormShape("T5-Base dropout", 768, units=0.1),
    NormShape("T5-Base dropout, path", 768, units=0.1, path=0.1),
    NormShape("T5-Base dropout, join alone", 768, "join", units=0.1),
    NormShape("T5-Base norm alone", 768, "norm"),
    NormShape("T5-Base autocast dropout", 768, units=0.1, stream=torch.float32),
    NormShape("T5-Large dropout", 1024, units=0.1),
    NormShape("T5-XL dropout", 2048, units=0.1),
    NormShape("Llama-1B", 2048, B=4, T=2048),
    NormShape("Llama-7B", 4096, B=4, T=2048),
    NormShape("Llama-7B norm alone", 4096, "norm", B=4, T=2048),
    NormShape("Llama-7B dropout", 4096, units=0.1, B=4, T=2048),
    NormShape("Llama-7B dropout, join alone", 4096, "join", units=0.1, B=4, T=2048),
    NormShape("Llama-7B autocast dropout", 4096, units=0.1, B=4, T=2048, stream=torch.float32),
    NormShape("width 8192 dropout", 8192, units=0.1, path=0.1, B=4, T=2048),
    NormShape("width 8192 autocast dropout", 8192, units=0.1, path=0.1, B=4, T=2048, stream=torch.float32),
]


class _Tensors(NamedTuple):
    x_BTD: Tensor
    branch_BTD: Tensor
    weight_D: Tensor
    drops: Drops


def _tensors(shape: NormShape, device: str) -> _Tensors:
    size = (shape.B, shape.T, shape.D)
    key_B = torch.arange(shape.B, dtype=torch.int64, device=device)
    return _Tensors(
        torch.randn(*size, dtype=shape.stream, device=device),
        torch.randn(*size, dtype=shape.dtype, device=device),
        torch.ones(shape.D, dtype=shape.stream, device=device),
        Drops(key_B if shape.units else None, shape.units, key_B if shape.path else None, shape.path),
    )


def _launch(shape: NormShape) -> Callable[[], object]:
    from reptrain_kernels.ops.norm.triton import launch_join, launch_norm, launch_norm_gradient

    x, branch, weight, drops = _tensors(shape, "meta")
    packed = (
        *counter.key_and_rate(drops.unit_key_B, shape.units),
        *counter.key_and_rate(drops.path_key_B, shape.path),
    )
    if shape.what == "join":
        return lambda: (
            launch_join(x, branch, *packed, x.dtype),
            launch_join(None, x, *packed, branch.dtype),
        )
    given = None if shape.what == "norm" else branch
    grad_stream = None if given is None else x
    rstd = x.new_empty(x.shape[:-1], dtype=torch.float32)
    branch_dtype = branch.dtype if shape.drops else None
    return lambda: (
        launch_norm(x, given, weight, *packed, EPS),
        launch_norm_gradient(grad_stream, x, x, weight, rstd, branch_dtype, *packed),
    )


def _needed(shape: NormShape) -> list[Work]:
    """Each tensor once. Of a branch whose path is dropped nothing is read."""
    lines = shape.B * shape.T
    units = lines * shape.D
    stream, branch = units * element_bytes(shape.stream), units * element_bytes(shape.dtype)
    integers = DROPOUT_INTEGERS * units if shape.units else 0
    kept = 1 - shape.path
    if shape.what == "join":
        forward, backward = 2 * stream + kept * branch, kept * stream + branch
        return [
            Work("forward", floats=2 * units, integers=integers, memory_bytes=forward),
            Work("backward", floats=units, integers=integers, memory_bytes=backward),
        ]
    rest = 4 * lines + shape.D * element_bytes(shape.stream)
    forward, backward = 2 * stream, 3 * stream
    if shape.what == "both":
        forward, backward = 3 * stream + kept * branch, 4 * stream + (branch if shape.drops else 0)
    weight = shape.D * element_bytes(shape.stream)
    return [
        Work("forward", floats=5 * units, integers=integers, memory_bytes=forward + rest),
        Work("backward", floats=9 * units, integers=integers, memory_bytes=backward + rest + weight),
    ]


def _moved(shape: NormShape, capability: int) -> list[list[Work]]:
    """The same tensors once. Besides: units of the block beyond the line's, masks of these, the line's
    key; and the parts of the weight's gradient, written and read again."""
    from reptrain_kernels.ops.norm.triton import gradient_blocks, norm_block

    forward, backward = _needed(shape)
    lines = shape.B * shape.T
    block = norm_block(shape.D, max_warps=32)["BLOCK_D"]
    if shape.what == "join":
        block, lines = 256, lines * -(-shape.D // 256)
    share = lines * block / (shape.B * shape.T * shape.D)
    extra = 2 * lines * block + 50 * lines * ((shape.units > 0) + (shape.path > 0))
    done = [
        work._replace(floats=share * work.floats, integers=share * work.integers + extra)
        for work in (forward, backward)
    ]
    if shape.what == "join":
        return [[work] for work in done]
    num_blocks = gradient_blocks(lines)[0]
    weight, parts = shape.D * element_bytes(shape.stream), 4 * shape.D * num_blocks
    done[1] = done[1]._replace(memory_bytes=done[1].memory_bytes - weight + parts)
    return [done[:1], [done[1], Work("weight", floats=parts / 4, memory_bytes=parts + weight)]]


def _ways(shape: NormShape, device: str) -> Ways:
    """Ours; the definition, eager and compiled; Liger's, which drops nothing."""
    x, branch, weight, drops = _tensors(shape, device)
    leaves = {"norm": [x, weight], "join": [x, branch], "both": [x, branch, weight]}[shape.what]
    for leaf in leaves:
        leaf.requires_grad_()

    def call(impl: Any) -> Any:
        if shape.what == "norm":
            return rms_norm(x, weight, EPS, impl=impl)
        if shape.what == "join":
            return join(x, branch, drops, impl=impl)
        return join_and_norm(x, branch, weight, EPS, drops, impl=impl)

    calls = own_ways(call)
    liger = installed("liger_kernel.transformers.functional")
    if liger is not None and shape.what == "norm":
        calls["liger"] = lambda: liger.liger_rms_norm(x, weight, EPS, in_place=False)
    if liger is not None and shape.what == "both":
        calls["liger"] = lambda: liger.liger_fused_add_rms_norm(branch, x, weight, EPS, in_place=False)[::-1]
    return Ways(leaves, calls, frozenset({"liger"} & calls.keys() if shape.drops else ()))


OPERATION = Operation(
    name="norm",
    shapes=SHAPES,
    launch=_launch,
    needed=_needed,
    moved=_moved,
    ways=_ways,
    shown=(
        "T5-Base dropout",
        "T5-Base dropout, path",
        "T5-Base dropout, join alone",
        "T5-Base autocast dropout",
        "T5-XL dropout",
        "Llama-7B",
        "Llama-7B norm alone",
        "Llama-7B dropout",
        "width 8192 dropout",
    ),
)
