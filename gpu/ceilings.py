"""The rates of this GPU that other rates are compared with: a copy, and a bf16 matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rows import Arguments, add


def once(call: Callable[[], object], leaves: list[Any]) -> Any:
    """The time of one call on a CPU."""
    from reptrain_kernels.bench.timed import Timing

    begin = time.perf_counter()
    call()
    spent = 1e6 * (time.perf_counter() - begin)
    return Timing(spent, spent, spent)


def main() -> None:
    """Measure both rates twice: the difference is the noise."""
    asked = Arguments(__doc__)
    from reptrain_kernels.bench import timed

    for again in (1, 2):
        if asked.rehearse:
            top = timed.ceilings(once, "cpu", copied=2**20, width=64)
        else:
            top = timed.ceilings(timed.on_cuda, "cuda")
        add(
            "ceilings",
            f"measurement {again}",
            copy_tb_per_s=top.bytes_per_second / 1e12,
            matmul_tflops=top.flops_per_second / 1e12,
        )


if __name__ == "__main__":
    main()
