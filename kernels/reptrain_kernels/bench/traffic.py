"""What an operation must do, what its kernels do, and how long that takes at the rates of A100 and H100.

    python -m reptrain_kernels.bench.traffic

Nothing is measured. The roofline is the time of the busiest unit for the work that no implementation can
avoid; the model is the same for the work that these kernels do, each for itself. Neither knows of latency, of
the order of instructions or of an L2 cache that misses. Another operation joins by a function from a shape to
its two lists of `Work`.

Sources:
    NVIDIA A100 and H100 white papers, and the CUDA programming guide's table of arithmetic throughput: units
    of a multiprocessor, boost clocks, memory rates.
"""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

from reptrain_kernels.attention_tiles import Pass, Tiles, attention_tiles
from reptrain_kernels.bench.shapes import ATTENTION, AttentionShape


class Rates(NamedTuple):
    """Of a chip, each per second."""

    name: str
    matrix_flops: float
    floats: float
    integers: float
    exps: float
    shared_bytes: float
    memory_bytes: float


def _rates(name: str, num_sms: int, clock: float, matrix: int, floats: int, memory_bytes: float) -> Rates:
    """From what a multiprocessor does in a clock; integer, exp2 and shared-memory rates are both chips'."""
    clocks = num_sms * clock
    return Rates(name, clocks * matrix, clocks * floats, clocks * 64, clocks * 16, clocks * 128, memory_bytes)


CHIPS = {
    80: _rates("A100-80GB", 108, 1.41e9, 2048, 64, 2.039e12),
    90: _rates("H100-SXM", 132, 1.83e9, 4096, 128, 3.35e12),
}


class Work(NamedTuple):
    """Of one kernel, or of one pass; the fields are those of `Rates`."""

    what: str
    matrix_flops: float
    floats: float
    integers: float
    exps: float
    shared_bytes: float
    memory_bytes: float

    def seconds(self, rates: Rates) -> tuple[float, str]:
        """Of the busiest unit, and which that is."""
        return max((getattr(self, unit) / getattr(rates, unit), unit) for unit in Rates._fields[1:])


# Integer instructions for the word of one weight (see `counter`): two rounds of three shifts, three xors and
# two products, two more xors of which one merges; then compare and select.
_DROPOUT_INTEGERS = 19


def _pairs(shape: AttentionShape) -> float:
    """Pairs of a query and a key that it sees."""
    visible = shape.T * (shape.T + 1) / 2 if shape.causal else shape.T * shape.S
    return shape.B * shape.H * visible


def attention_needed(shape: AttentionShape) -> list[Work]:
    """Forward and backward: each tensor moved once, two and five products, each weight made once a pass."""
    pairs, size = _pairs(shape), 4 if str(shape.dtype) == "torch.float32" else 2
    queries = shape.B * shape.H * shape.T * shape.N * size
    keys = shape.B * shape.K * shape.S * shape.N * size
    lse = shape.B * shape.H * shape.T * 4
    integers = _DROPOUT_INTEGERS if shape.rate else 0
    products, tensors = 2 * pairs * shape.N, 2 * (queries + keys)
    # Scale, peak, difference, sum, and a cast of two at once. Back: scale, difference, the score's gradient.
    return [
        Work("forward", 2 * products, 4.5 * pairs, integers * pairs, pairs, 0, tensors + lse),
        Work("backward", 5 * products, 5 * pairs, integers * pairs, pairs, 0, 2 * tensors + lse),
    ]


class _Tiling(NamedTuple):
    """How a kernel walks: ``held`` positions stay in a program, ``passed`` ones go by."""

    tiles: Tiles
    held: int
    passed: int
    products: int
    from_shared: int
    """Products whose left side is read from shared memory, not from registers."""


def _tiling(which: Pass, tiles: Tiles) -> _Tiling:
    if which == "forward":
        return _Tiling(tiles, tiles.queries, tiles.keys, 2, 1)
    if which == "query_gradient":
        return _Tiling(tiles, tiles.queries, tiles.keys, 3, 2)
    return _Tiling(tiles, tiles.keys, tiles.queries, 4, 2)


def _visited(shape: AttentionShape, tiling: _Tiling) -> float:
    """Tiles that are visited, those that are partly visible whole."""
    t, s = tiling.tiles.queries, tiling.tiles.keys
    if not shape.causal:
        return shape.B * shape.H * math.ceil(shape.T / t) * math.ceil(shape.S / s)
    rows = range(math.ceil(shape.T / t))
    return shape.B * shape.H * sum(math.ceil(min((row + 1) * t, shape.S) / s) for row in rows)


def _near_share(shape: AttentionShape, tiling: _Tiling) -> float:
    """The share of visited tiles that are near (see `attention_kernels`), an upper bound."""
    t, s = tiling.tiles.queries, tiling.tiles.keys
    reach = (shape.E or 1) * (1 if shape.causal else 2) + t + s
    return min(1.0, reach / (shape.S / 2 if shape.causal else shape.S))


def attention_moved(shape: AttentionShape, capability: int) -> list[Work]:
    """The three kernels, counted from their loads, stores and instructions at the tiles that would run."""
    size = 4 if str(shape.dtype) == "torch.float32" else 2
    queries = shape.B * shape.H * shape.T * shape.N * size
    keys = shape.B * shape.K * shape.S * shape.N * size
    line = shape.B * shape.H * shape.T * 4
    memory = {
        "forward": 2 * queries + 2 * keys + line,
        "query_gradient": 4 * queries + 2 * keys + 2 * line + (2 * line if shape.rate else 0),
        "key_gradient": 2 * queries + 4 * keys + 2 * line + (2 * line if shape.rate else 0),
    }
    return [_kernel(shape, which, capability, memory[which]) for which in memory]


def _kernel(shape: AttentionShape, which: Pass, capability: int, memory_bytes: float) -> Work:
    size = 4 if str(shape.dtype) == "torch.float32" else 2
    tiling = _tiling(which, attention_tiles(which, shape.N, size, capability, shape.E > 0))
    t, s = tiling.tiles.queries, tiling.tiles.keys
    tiles, near = _visited(shape, tiling), _near_share(shape, tiling)
    # A warp of sm_80 computes 16 lines: more warps than lines for them repeat each other's work.
    repeated = max(1.0, 16 * tiling.tiles.num_warps / tiling.held) if capability < 90 else 1.0
    pairs = tiles * t * s * repeated
    # sm_80: each warp reads the right side of a product for its own lines; sm_90: each group of four does.
    readers = tiling.tiles.num_warps if capability < 90 else max(1, tiling.held // 64)
    right = tiling.products * readers * tiling.passed * shape.N * size
    left = tiling.from_shared * tiling.held * shape.N * size
    staged = 2 * tiling.passed * shape.N * size
    floats, integers = {"forward": 4.5, "query_gradient": 4.5, "key_gradient": 5.0}[which], 0.0
    if which == "forward":
        floats += shape.N / s  # The running output is scaled at each tile.
    if shape.E:
        floats += 1
        integers += 2 * near  # The address of a bias.
    if shape.E and which == "query_gradient":
        # Far: one sum. Near: turned by a shuffle, then chosen and summed for each block of diagonals.
        floats += (1 - near) + near * (t // s + 1)
        integers += near * (2 + 2 * (t // s + 1))
    integers += 2 * (shape.segments + (near if shape.causal else 0))
    integers += _DROPOUT_INTEGERS if shape.rate else 0
    return Work(
        which,
        2 * tiling.products * pairs * shape.N,
        floats * pairs,
        integers * pairs,
        pairs,
        tiles * (right + left + staged),
        memory_bytes,
    )


class Modelled(NamedTuple):
    """One shape on one chip."""

    shape: str
    chip: str
    what: str
    roofline_us: float
    roofline_unit: str
    model_us: float
    model_unit: str

    @property
    def ratio(self) -> float:
        """How much longer than the roofline."""
        return self.model_us / self.roofline_us


def attention_modelled(shape: AttentionShape, capability: int) -> list[Modelled]:
    """Forward and backward."""
    rates = CHIPS[capability]
    kernels = attention_moved(shape, capability)
    rows = []
    for needed, done in zip(attention_needed(shape), (kernels[:1], kernels[1:]), strict=True):
        least, unit = needed.seconds(rates)
        times = [kernel.seconds(rates) for kernel in done]
        rows.append(
            Modelled(
                shape.name,
                rates.name,
                needed.what,
                1e6 * least,
                unit,
                1e6 * sum(seconds for seconds, _ in times),
                max(times)[1],
            )
        )
    return rows


def table() -> list[Modelled]:
    """Every shape in half precision, on every chip."""
    shapes = [shape for shape in ATTENTION if str(shape.dtype) != "torch.float32"]
    return [row for shape in shapes for chip in CHIPS for row in attention_modelled(shape, chip)]


def main() -> int:
    """Print the table."""
    line = "{:22} {:10} {:9} {:>12} {:13} {:>9} {:13} {:>6}\n"
    sys.stdout.write(line.format("shape", "chip", "pass", "roofline us", "by", "model us", "by", "ratio"))
    for row in table():
        times = f"{row.roofline_us:.0f}", row.roofline_unit, f"{row.model_us:.0f}", row.model_unit
        sys.stdout.write(line.format(row.shape, row.chip, row.what, *times, f"{row.ratio:.2f}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
