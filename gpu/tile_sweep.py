"""Times other tiles of the attention kernels at the encoder of T5-Base, until the time is up."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from ceilings import once
from rows import RESTART, ROOT, Arguments, run_cases

PART = "tiles"
CANDIDATES: dict[str, list[tuple[int, int, int, int]]] = {
    # queries, keys, warps, stages
    "forward": [(128, 64, 4, 3), (128, 128, 8, 2), (128, 64, 8, 2), (64, 64, 4, 3), (128, 32, 4, 3)],
    "query_gradient": [(64, 64, 4, 2), (128, 32, 8, 2), (128, 64, 8, 2), (64, 32, 4, 3), (128, 32, 4, 2)],
    "key_gradient": [(64, 128, 8, 2), (32, 64, 4, 2), (32, 128, 8, 2), (64, 64, 4, 2), (32, 128, 4, 2)],
}
SHAPES = ("T5-Base encoder", "T5-Base dropout encoder")


def time_of(shape: Any, asked: Arguments, changed: dict[str, Any]) -> dict[str, float]:
    """Microseconds of the forward pass, and of both passes, with some kernels' tiles replaced."""
    import torch

    from reptrain_kernels.bench import timed
    from reptrain_kernels.ops.attention import triton as attention_triton
    from reptrain_kernels.ops.attention.bench import OPERATION as ATTENTION_OPERATION
    from reptrain_kernels.ops.attention.tiles import attention_tiles

    def chosen(which: str, *about: Any) -> Any:
        return changed.get(which) or attention_tiles(which, *about)  # type: ignore[arg-type]

    attention_triton.attention_tiles = chosen  # type: ignore[assignment]
    torch.manual_seed(0)
    ways = ATTENTION_OPERATION.ways(shape, asked.device)
    call, leaves = ways.calls["triton"], list(ways.leaves)
    outputs = timed.outputs_of(call())
    grads = timed.upstream(outputs)
    timer = once if asked.rehearse else timed.on_cuda
    with torch.no_grad():
        forward = timer(call, []).median_us
    both = timer(lambda: torch.autograd.backward(timed.outputs_of(call()), grads), leaves).median_us
    return {"forward_us": forward, "both_us": both}


def main() -> int:
    """Time the default tiles, then each candidate in one kernel; returns the exit code."""
    asked = Arguments(__doc__)
    if asked.rehearse:
        sys.path.insert(0, str(ROOT / "tests" / "kernels"))
        import interpreted

        interpreted.prepare()
    from kernel_checks import SMALL
    from reptrain_kernels.ops.attention.bench import ATTENTION
    from reptrain_kernels.ops.attention.tiles import Tiles

    candidates: list[tuple[str, Any]] = [("", None)]
    candidates += [(which, Tiles(*tile)) for which, tiles in CANDIDATES.items() for tile in tiles]
    if asked.rehearse:
        candidates = [("", None), ("forward", Tiles(16, 16, 4, 1))]
    cases = []
    for shape_name in SHAPES[:1] if asked.rehearse else SHAPES:
        shape = next(shape for shape in ATTENTION if shape.name == shape_name)
        if asked.rehearse:
            shape = shape._replace(**SMALL["attention"])
        for which, tiles in candidates:
            words = "default tiles" if tiles is None else f"{which} {'x'.join(map(str, tiles))}"
            changed = {which: tiles} if tiles else {}
            cases.append((f"{shape_name}: {words}", partial(time_of, shape, asked, changed)))
    code = run_cases(PART, cases, asked)
    # A tile that is too large for the chip is a result, not a failure.
    return code if code == RESTART else 0


if __name__ == "__main__":
    sys.exit(main())
