"""Times choices of the implementation that need a GPU to be judged, each beside the other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from ceilings import once
from rows import Arguments, run_cases

PART = "choices"


def time_of(make: Callable[[str, bool], tuple[Any, list[Any]]], asked: Arguments) -> dict[str, float]:
    """Microseconds of a forward and a backward pass."""
    import torch

    from reptrain_kernels.bench import timed

    torch.manual_seed(0)
    call, leaves = make(asked.device, asked.rehearse)
    timer = once if asked.rehearse else timed.on_cuda
    outputs = timed.outputs_of(call())
    grads = timed.upstream(outputs)
    both = timer(lambda: torch.autograd.backward(timed.outputs_of(call()), grads), leaves)
    return {"both_us": both.median_us}


def projections(how: str, sizes: tuple[int, ...], device: str, small: bool) -> tuple[Any, list[Any]]:
    """Products of the same states with several matrices: one by one, or with all of them at once.

    Args:
        how: "separate", or "joint": the matrices are copied into one.
        sizes: Output units of each matrix.
        device: Device of the tensors.
        small: Whether to use tiny sizes.
    """
    import torch
    import torch.nn.functional as F

    lines, width = (64, 16) if small else (16 * 512, 768)
    widths = [16 if small else size for size in sizes]
    on: dict[str, Any] = {"device": device, "dtype": torch.bfloat16, "requires_grad": True}
    x = torch.randn(lines, width, **on)
    weights = [torch.randn(size, width, **on) for size in widths]

    def call() -> tuple[Any, ...]:
        if how == "separate":
            return tuple(F.linear(x, weight) for weight in weights)
        return F.linear(x, torch.cat(weights)).split(widths, -1)

    return call, [x, *weights]


def norm(most_blocks: int, device: str, small: bool) -> tuple[Any, list[Any]]:
    """RMS norm, whose backward pass has at most so many blocks of lines."""
    import torch

    from reptrain_kernels.ops.norm import rms_norm
    from reptrain_kernels.ops.norm import triton as norm_triton

    norm_triton.MAX_GRADIENT_BLOCKS = most_blocks
    lines, width = (64, 16) if small else (128 * 512, 768)
    x = torch.randn(1, lines, width, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(width, device=device, dtype=torch.bfloat16, requires_grad=True)
    impl = "torch" if small else "triton"
    return lambda: rms_norm(x, weight, 1e-6, impl=impl), [x, weight]


def main() -> int:
    """Time each choice; returns the exit code."""
    asked = Arguments(__doc__)
    import torch

    processors = 2 if asked.rehearse else torch.cuda.get_device_properties(0).multi_processor_count
    makers: dict[str, Callable[[str, bool], tuple[Any, list[Any]]]] = {}
    for how in ("separate", "joint"):
        makers[f"q, k and v of T5-Base: {how}"] = partial(projections, how, (768, 768, 768))
        makers[f"gate and up of T5-Base: {how}"] = partial(projections, how, (2048, 2048))
    for most in (432, 2 * processors, 4 * processors, 8 * processors):
        makers[f"norm of T5-Base: at most {most} blocks"] = partial(norm, most)
    return run_cases(PART, [(name, partial(time_of, make, asked)) for name, make in makers.items()], asked)


if __name__ == "__main__":
    sys.exit(main())
