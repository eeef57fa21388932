"""Times one small shape, interpreted, and prints the rows as JSON: with the code of the GPU benchmark."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import interpreted

interpreted.prepare()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from reptrain_kernels.bench import timed  # noqa: E402
from reptrain_kernels.bench.operation import Ways  # noqa: E402
from reptrain_kernels.ops.attention import triton as attention_triton  # noqa: E402
from reptrain_kernels.ops.attention.bench import OPERATION as ATTENTION_OPERATION  # noqa: E402
from reptrain_kernels.ops.attention.bench import AttentionShape  # noqa: E402
from reptrain_kernels.ops.attention.tiles import Tiles  # noqa: E402
from reptrain_kernels.ops.norm.bench import OPERATION as NORM_OPERATION  # noqa: E402
from reptrain_kernels.ops.norm.bench import NormShape  # noqa: E402

SHAPE = AttentionShape("small", H=2, K=2, N=16, B=1, T=20, S=20, E=3, dtype=torch.float32)

SHAPE_OF_NORM = NormShape("small", 24, units=0.2, B=2, T=3, dtype=torch.float32, stream=torch.float32)


def once(call: Callable[[], object], leaves: list[Tensor]) -> timed.Timing:
    """The time of a single call."""
    begin = time.perf_counter()
    call()
    spent = 1e6 * (time.perf_counter() - begin)
    return timed.Timing(spent, spent, spent)


def ways(shape: AttentionShape, device: str) -> Ways:
    """Those that a CPU has, one that computes something else, and one that fails."""
    known = ATTENTION_OPERATION.ways(shape, device)
    calls = {name: known.calls[name] for name in ("triton", "torch", "sdpa alone")}
    calls["wrong"] = lambda: 1.01 * calls["torch"]()
    calls["failing"] = lambda: calls["torch"]().view(3)
    return known._replace(calls=calls)


def ways_of_norm(shape: NormShape, device: str) -> Ways:
    """Those that a CPU has, each with two outputs, and one whose second output is wrong."""
    known = NORM_OPERATION.ways(shape, device)
    calls = {name: known.calls[name] for name in ("triton", "torch")}
    calls["wrong"] = lambda: (calls["torch"]()[0], 1.01 * calls["torch"]()[1])
    return known._replace(calls=calls)


if __name__ == "__main__":
    torch.manual_seed(0)
    attention_triton.attention_tiles = lambda *_: Tiles(16, 16, 4, 1)
    operation = ATTENTION_OPERATION._replace(
        shapes=[SHAPE, SHAPE._replace(name="hidden")], shown=["small"], ways=ways
    )
    measured = timed.ceilings(once, "cpu", copied=2**10, width=16)
    assert min(measured) > 0
    # Fixed, so that a share of it is no number that rounds to nothing on a busy machine.
    top = timed.Ceilings(1.0, 1.0)
    rows = [row._asdict() for row in timed.timed([operation], "cpu", timer=once, top=top)]
    late = [row._asdict() for row in timed.timed([operation], "cpu", timer=once, top=top, minutes=-1)]
    norm = NORM_OPERATION._replace(shapes=[SHAPE_OF_NORM], shown=["small"], ways=ways_of_norm)
    several = [row._asdict() for row in timed.timed([norm], "cpu", timer=once, top=top)]
    json.dump({"rows": rows, "late": late, "several": several}, sys.stdout)
