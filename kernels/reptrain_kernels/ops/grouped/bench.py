"""Experts' MLPs at the shapes of published models: compiled, modeled, timed.

Sizes: M tokens, K experts of a token, N = M K rows, E experts, D width, F hidden units of an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reptrain_kernels import rates
from reptrain_kernels.bench.operation import DROPOUT_INTEGERS, Operation, Ways, Work, element_bytes
from reptrain_kernels.ops.gated import GATED, Activation, activate
from reptrain_kernels.ops.grouped import grouped_mlp
from reptrain_kernels.ops.grouped.tiles import Kernel, Tiles, grouped_tiles


class GroupedShape(NamedTuple):
    """The experts of one layer; all get as many tokens."""

    name: str
    D: int
    F: int
    E: int
    K: int = 2
    M: int = 8192
    activation: Activation = "geglu"
    rate: float = 0.0
    dtype: torch.dtype = torch.bfloat16

    @property
    def N(self) -> int:
        """Rows."""
        return self.M * self.K

    @property
    def gates(self) -> int:
        """Number of matrices in addition to up and down."""
        return int(self.activation in GATED)


GROUPED = [
    GroupedShape("MoE-Base", 768, 2048, 16),
    GroupedShape("MoE-Base dropout", 768, 2048, 16, rate=0.1),
    GroupedShape("MoE-Large dropout", 1024, 2816, 16, rate=0.1),
    GroupedShape("MoE-Large dropout 32k tokens", 1024, 2816, 16, M=32768, rate=0.1),
    GroupedShape("Switch-Base-32 dropout", 768, 3072, 32, 1, activation="relu", rate=0.1),
    GroupedShape("Mixtral 8x7B", 4096, 14336, 8, activation="swiglu"),
    GroupedShape("MoE-Base fp32", 768, 2048, 16, dtype=torch.float32),
]


_L2_BYTES = 40e6
"""Of an A100; an H100 has 50."""


class GroupedTensors(NamedTuple):
    """What `grouped_mlp` is called with."""

    x_ND: Tensor
    gate_EFD: Tensor | None
    up_EFD: Tensor
    down_EDF: Tensor
    count_E: Tensor
    key_N: Tensor | None


def grouped_tensors(shape: GroupedShape, device: str) -> GroupedTensors:
    """Random tensors; weights as a layer's, so that hidden units are of the size of one."""
    on: dict[str, Any] = {"device": device, "dtype": shape.dtype}
    up, *gate = (torch.randn(shape.E, shape.F, shape.D, **on) * shape.D**-0.5 for _ in range(1 + shape.gates))
    return GroupedTensors(
        torch.randn(shape.N, shape.D, **on),
        gate[0] if gate else None,
        up,
        torch.randn(shape.E, shape.D, shape.F, **on) * shape.F**-0.5,
        torch.full((shape.E,), shape.N // shape.E, device=device),
        torch.arange(shape.N, device=device) if shape.rate else None,
    )


def _launch(shape: GroupedShape) -> Callable[[], object]:
    from reptrain_kernels.ops.grouped.triton import launch_mlp, launch_mlp_backward

    x, gate, up, down, count, key = grouped_tensors(shape, "meta")
    rest = (count.int(), key, rates.packed(shape.rate), shape.activation)
    h = x.new_empty(shape.N, shape.F)
    bent = h if gate is not None else h.new_empty(0)
    return lambda: (
        launch_mlp(x, gate, up, down, *rest),
        launch_mlp_backward(x, x, h, h, bent, gate, up, down, *rest),
    )


def _needed(shape: GroupedShape) -> list[Work]:
    """Rows and weights moved once, and what the backward pass needs of the hidden units; each mask made once
    a pass."""
    size, matrices = element_bytes(shape.dtype), 2 + shape.gates
    rows, hidden = shape.N * shape.D * size, shape.N * shape.F * size
    weights, units = matrices * shape.E * shape.D * shape.F * size, shape.N * shape.F
    flops = 2 * matrices * shape.N * shape.D * shape.F
    integers = DROPOUT_INTEGERS * units if shape.rate else 0
    kept = (matrices - 1) * hidden
    # The activation: an exponential, a division, some products.
    return [
        Work("forward", flops, 8 * units, integers, 2 * units, 0, 2 * rows + weights + kept),
        Work("backward", 2 * flops, 12 * units, integers, 2 * units, 0, 3 * rows + 2 * weights + kept),
    ]


class _Walk(NamedTuple):
    """What the tiles of a kernel read in the loop over the summed dimension."""

    tiles: float
    steps: float
    """Of a tile."""
    products: int = 1
    """At each step, of one left side."""
    warp_lines: int = 2
    """Warps that share no line of the left side, on sm_80 (as compiled)."""


def _walked(shape: GroupedShape, what: str, how: Tiles, walk: _Walk, capability: int, **work: float) -> Work:
    """The work of one kernel, tiles whole."""
    size = element_bytes(shape.dtype)
    flops = 2 * walk.tiles * walk.steps * walk.products * how.lines * how.columns * how.depth
    left, right = how.lines * how.depth * size, walk.products * how.columns * how.depth * size
    if capability < 90:
        # Each warp reads its lines of the left side and its columns of the right.
        read = left * how.num_warps / walk.warp_lines + right * walk.warp_lines
    else:
        # Each group of four warps reads its lines for each product, and the right side whole.
        read = left * walk.products + right * how.num_warps / 4
    shared = walk.tiles * walk.steps * (left + right + read)
    return Work(what, flops, shared_bytes=shared, **work)


def _moved(shape: GroupedShape, capability: int) -> list[list[Work]]:
    """Two kernels forward and five backward.

    An expert's last tile is half full on average. Weights are read once where an expert's take less than half
    of the L2 cache, else once for each eight tiles of lines, and once more where those are of two experts.
    """
    size, gates = element_bytes(shape.dtype), shape.gates
    rows, hidden, matrix = shape.N * shape.D * size, shape.N * shape.F * size, shape.D * shape.F * size
    units = shape.N * shape.F
    integers = DROPOUT_INTEGERS * units if shape.rate else 0
    keys = 8 * shape.N if shape.rate else 0

    def by_rows(
        which: Kernel, inputs: int, columns: int, matrices: int, products: int, **work: float
    ) -> Work:
        how = grouped_tiles("product" if which == "hidden" and not gates else which, size, capability)
        line_tiles = shape.N / how.lines + shape.E / 2
        tiles, steps = line_tiles * -(-columns // how.columns), -(-inputs // how.depth)
        # Where a product follows another into the same sums, there are more steps.
        steps *= matrices // products
        readings = shape.E if matrices * matrix < _L2_BYTES / 2 else line_tiles / 8 + shape.E
        work["memory_bytes"] += matrices * matrix * readings
        warp_lines = how.num_warps if products == 2 else 2
        return _walked(shape, which, how, _Walk(tiles, steps, products, warp_lines), capability, **work)

    def of_weights(lines: int, columns: int, left: float, right: float) -> Work:
        how = grouped_tiles("weight_gradient", size, capability)
        line_tiles, column_tiles = -(-lines // how.lines), -(-columns // how.columns)
        steps = shape.N / shape.E / how.depth + 0.5
        walk = _Walk(shape.E * line_tiles * column_tiles, steps)
        moved = left + right * -(-line_tiles // 8) + shape.E * matrix
        return _walked(shape, "weight_gradient", how, walk, capability, memory_bytes=moved)

    bent = {"exps": 2 * units, "integers": integers}
    return [
        [
            by_rows(
                "hidden", shape.D, shape.F, 1 + gates, 1 + gates, **bent, floats=8 * units,
                memory_bytes=rows + (2 + gates) * hidden + keys,
            ),
            by_rows("product", shape.F, shape.D, 1, 1, memory_bytes=hidden + rows),
        ],
        [
            by_rows(
                "hidden_gradient", shape.D, shape.F, 1, 1, **bent, floats=12 * units,
                memory_bytes=rows + 2 * (1 + gates) * hidden + keys,
            ),
            by_rows("row_gradient", shape.F, shape.D, 1 + gates, 1, memory_bytes=(1 + gates) * hidden + rows),
            *[of_weights(shape.F, shape.D, hidden, rows)] * (1 + gates),
            of_weights(shape.D, shape.F, rows, hidden),
        ],
    ]  # fmt: skip


def _ways(shape: GroupedShape, device: str) -> Ways:
    """Ours; torch's grouped product with the operations between; for comparison, dense products of as many
    FLOPs, as if all rows belonged to one expert."""
    x, gate, up, down, count, key = grouped_tensors(shape, device)
    leaves = [leaf.requires_grad_() for leaf in (x, gate, up, down) if leaf is not None]
    how: dict[str, Any] = {"activation": shape.activation, "key_N": key, "rate": shape.rate}

    def dense() -> Tensor:
        first = None if gate is None else (x @ gate[0].T)[:, None]
        h_NF = activate(shape.activation, (x @ up[0].T)[:, None], first, key=key, rate=shape.rate)[:, 0]
        return h_NF @ down[0].T

    calls = {
        "triton": lambda: grouped_mlp(x, gate, up, down, count, **how, impl="triton"),
        "torch": lambda: grouped_mlp(x, gate, up, down, count, **how, impl="torch"),
        "dense": dense,
    }
    return Ways(leaves, calls, frozenset({"dense"}))


OPERATION = Operation(
    name="grouped",
    shapes=GROUPED,
    launch=_launch,
    needed=_needed,
    moved=_moved,
    ways=_ways,
    shown=(
        "MoE-Base dropout",
        "MoE-Large dropout",
        "Switch-Base-32 dropout",
        "Mixtral 8x7B",
        "MoE-Base fp32",
    ),
    matrix_kernels=frozenset({"hidden", "product", "hidden_gradient", "row_gradient", "weight_gradient"}),
    on_blackwell=frozenset({"MoE-Base"}),
)
