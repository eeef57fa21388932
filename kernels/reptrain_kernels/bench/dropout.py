"""`counter.dropout` at the embeddings of published models: compiled, modeled, timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reptrain_kernels import counter, rates
from reptrain_kernels.bench.operation import (
    DROPOUT_INTEGERS,
    Operation,
    Ways,
    Work,
    compiled_way,
    element_bytes,
)


class DropoutShape(NamedTuple):
    """B rows of P positions with U units."""

    name: str
    U: int
    B: int = 16
    P: int = 512
    rate: float = 0.1
    dtype: torch.dtype = torch.bfloat16


SHAPES = [
    DropoutShape("T5-Base embedding", 768),
    DropoutShape("T5-Large embedding", 1024),
    DropoutShape("T5-XL embedding", 2048),
    DropoutShape("Llama-7B embedding", 4096, 4, 2048),
]


def _tensors(shape: DropoutShape, device: str) -> tuple[Tensor, Tensor]:
    x = torch.randn(shape.B, shape.P, shape.U, dtype=shape.dtype, device=device)
    return x, torch.arange(shape.B, dtype=torch.int64, device=device)


def _launch(shape: DropoutShape) -> Callable[[], object]:
    from reptrain_kernels.counter_triton import launch_dropout

    x, key = _tensors(shape, "meta")
    return lambda: launch_dropout(x, key, rates.packed(shape.rate))


def _needed(shape: DropoutShape) -> list[Work]:
    # The gradient is the same function of the gradient.
    units = shape.B * shape.P * shape.U
    integers, moved = DROPOUT_INTEGERS * units, 2 * units * element_bytes(shape.dtype)
    return [Work(what, integers=integers, memory_bytes=moved) for what in ("forward", "backward")]


def _moved(shape: DropoutShape, capability: int) -> list[list[Work]]:
    # Besides, 8 bytes and two folds of 64 bits for each line of a tile of 256 units.
    lines = shape.B * shape.P * -(-shape.U // 256)
    return [
        [work._replace(integers=work.integers + 40 * lines, memory_bytes=work.memory_bytes + 8 * lines)]
        for work in _needed(shape)
    ]


def _ways(shape: DropoutShape, device: str) -> Ways:
    x, key = _tensors(shape, device)
    x.requires_grad_()
    calls = {
        "triton": lambda: counter.dropout(x, key, shape.rate, impl="triton"),
        "torch": lambda: counter.dropout(x, key, shape.rate, impl="torch"),
        "F.dropout": lambda: F.dropout(x, shape.rate),
    }
    calls["torch.compile"] = compiled_way(calls["torch"])
    return Ways([x], calls, frozenset({"F.dropout"}))


DROPOUT_OPERATION = Operation(
    name="dropout",
    shapes=SHAPES,
    launch=_launch,
    needed=_needed,
    moved=_moved,
    ways=_ways,
    shown=("T5-Base embedding", "Llama-7B embedding"),
)
