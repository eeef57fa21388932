"""Hidden units of MLPs at the sizes of published models: compiled, modeled, timed.

Sizes: B rows, T positions, F hidden units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from reptrain_kernels import rates
from reptrain_kernels.bench.operation import (
    DROPOUT_INTEGERS,
    Operation,
    Ways,
    Work,
    element_bytes,
    installed,
    own_ways,
)
from reptrain_kernels.ops.gated import GATED, Activation, activate


class GatedShape(NamedTuple):
    """The hidden units of a model."""

    name: str
    F: int
    activation: Activation
    rate: float = 0.0
    B: int = 16
    T: int = 512
    dtype: torch.dtype = torch.bfloat16

    @property
    def projections(self) -> int:
        """Two where there is a gate."""
        return 2 if self.activation in GATED else 1


SHAPES = [
    GatedShape("T5-Base", 2048, "geglu"),
    GatedShape("T5-Base dropout", 2048, "geglu", 0.1),
    GatedShape("T5-Base (1.0) dropout", 3072, "relu", 0.1),
    GatedShape("T5-Large dropout", 2816, "geglu", 0.1),
    GatedShape("T5-XL dropout", 5120, "geglu", 0.1),
    GatedShape("Llama-1B", 5632, "swiglu", B=4, T=2048),
    GatedShape("Llama-7B", 11008, "swiglu", B=4, T=2048),
    GatedShape("Llama-7B dropout", 11008, "swiglu", 0.1, B=4, T=2048),
    GatedShape("GPT-2 dropout", 3072, "gelu", 0.1, B=8, T=1024),
]


def _tensors(shape: GatedShape, device: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
    size = (shape.B, shape.T, shape.F)
    up_BTF, gate_BTF = (torch.randn(*size, dtype=shape.dtype, device=device) for _ in range(2))
    key_B = torch.arange(shape.B, dtype=torch.int64, device=device)
    return up_BTF, gate_BTF if shape.projections == 2 else None, key_B if shape.rate else None


def _launch(shape: GatedShape) -> Callable[[], object]:
    from reptrain_kernels.ops.gated.triton import launch_backward, launch_forward

    tensors = _tensors(shape, "meta")
    rest = (rates.packed(shape.rate), shape.activation)
    return lambda: (launch_forward(*tensors, *rest), launch_backward(tensors[0], *tensors, *rest))


def _needed(shape: GatedShape) -> list[Work]:
    """Each tensor once, each mask once a pass, the exponential of the activation once a pass."""
    units = shape.B * shape.T * shape.F
    tensor = units * element_bytes(shape.dtype)
    integers = DROPOUT_INTEGERS * units if shape.rate else 0
    exps = 0 if shape.activation == "relu" else units
    forward, backward = (shape.projections + 1) * tensor, (2 * shape.projections + 1) * tensor
    return [
        Work("forward", floats=5 * units, integers=integers, exps=exps, memory_bytes=forward),
        Work("backward", floats=10 * units, integers=integers, exps=exps, memory_bytes=backward),
    ]


def _moved(shape: GatedShape, capability: int) -> list[list[Work]]:
    """The same; an exponential comes with a reciprocal, and a line's key is made for each tile of it."""
    from reptrain_kernels.ops.gated.triton import BLOCK_UNITS

    tiles = shape.B * shape.T * -(-shape.F // BLOCK_UNITS) if shape.rate else 0
    units = shape.B * shape.T * shape.F
    return [
        [work._replace(exps=2 * work.exps, integers=work.integers + 2 * units + 50 * tiles)]
        for work in _needed(shape)
    ]


def _ways(shape: GatedShape, device: str) -> Ways:
    """Ours; the definition, eager and compiled; Liger's, which drops nothing and comes last: its backward
    pass writes over its inputs."""
    up, gate, key = _tensors(shape, device)
    leaves = [x.requires_grad_() for x in (up, gate) if x is not None]

    def call(impl: str) -> Tensor:
        return activate(shape.activation, up, gate, key=key, rate=shape.rate, impl=impl)

    calls = own_ways(call)
    liger = installed("liger_kernel.transformers.functional")
    if liger is not None and gate is not None:
        fused = liger.liger_swiglu if shape.activation == "swiglu" else liger.liger_geglu
        calls["liger"] = lambda: fused(gate, up)
    return Ways(leaves, calls, frozenset({"liger"} & calls.keys() if shape.rate else ()))


OPERATION = Operation(
    name="gated",
    shapes=SHAPES,
    launch=_launch,
    needed=_needed,
    moved=_moved,
    ways=_ways,
    shown=(
        "T5-Base",
        "T5-Base dropout",
        "T5-Base (1.0) dropout",
        "T5-XL dropout",
        "Llama-7B",
        "Llama-7B dropout",
    ),
)
