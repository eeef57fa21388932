"""Checks each kernel at one bf16 shape of a model: against float64, with new memory filled with NaN, twice.

The reference is the definition in torch on the same rounded inputs, in float64. Both runs must give the same
bits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from rows import ROOT, Arguments, run_cases

PART = "kernel checks"
SHAPES = {
    "attention": ["T5-Base dropout encoder", "T5-Base dropout decoder", "Llama-1B"],
    "dropout": ["T5-Base embedding"],
    "norm": ["T5-Base dropout, path"],
    "gated": ["T5-Base dropout"],
    "rope": ["Llama-1B documents"],
    "grouped": ["MoE-Base dropout"],
    "permute": ["MoE-Base"],
    "router": ["MoE-Base"],
    "linear_cross_entropy": ["T5-Base smoothed, z-loss"],
}
# The fields that make a shape small enough for Triton's interpreter.
SMALL: dict[str, dict[str, int]] = {
    "attention": {"B": 1, "H": 2, "K": 2, "T": 40, "S": 40, "E": 9, "N": 32},
    "dropout": {"B": 2, "P": 5, "U": 40},
    "norm": {"B": 2, "T": 5, "D": 40},
    "gated": {"B": 2, "T": 5, "F": 40},
    "rope": {"B": 2, "T": 6, "H": 2, "K": 2, "N": 16},
    "grouped": {"D": 32, "F": 32, "E": 4, "M": 12},
    "permute": {"D": 32, "E": 4, "M": 12},
    "router": {"B": 2, "T": 6, "E": 4},
    "linear_cross_entropy": {"D": 32, "V": 70, "N": 12},
}
TOLERANCE = {"bfloat16": 8e-3, "float32": 1e-4}


@contextmanager
def widened(leaves: list[Any]) -> Iterator[None]:
    """Convert the leaves to float64 in place, and back at the end."""
    kept = [leaf.data for leaf in leaves]
    for leaf in leaves:
        leaf.data = leaf.data.double()
    try:
        yield
    finally:
        for leaf, data in zip(leaves, kept, strict=True):
            leaf.data = data


def check(operation: Any, shape: Any, device: str) -> dict[str, Any]:
    """The largest relative error of outputs and gradients, and whether a second run gives the same bits."""
    import torch

    from reptrain_kernels.bench import timed

    torch.manual_seed(0)
    ways = operation.ways(shape, device)
    outputs = timed.outputs_of(ways.calls["triton"]())
    upstream = [grad.to(y.dtype) for grad, y in zip(timed.upstream(outputs), outputs, strict=True)]

    def results(way: str, *, exact: bool = False) -> list[Any]:
        found = timed.outputs_of(ways.calls[way]())
        grads = [g.to(y.dtype) for g, y in zip(upstream, found, strict=True)]
        wanted = torch.autograd.grad(found, list(ways.leaves), grads, materialize_grads=True)
        return [*(y.detach() for y in found), *wanted]

    first, second = results("triton"), results("triton")
    try:
        with widened(list(ways.leaves)):
            expected, reference = results("torch"), "float64"
    except (RuntimeError, ValueError):
        # Some definitions take inputs of one dtype beside leaves of another.
        expected, reference = results("torch"), "definition"
    errors = [
        ((x.double() - y.double()).norm() / y.double().norm().clamp(min=1e-9)).item()
        for x, y in zip(first, expected, strict=True)
    ]
    same = all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    worst = max(errors) if all(error == error for error in errors) else float("nan")
    name = str(shape.dtype).removeprefix("torch.")
    limit = TOLERANCE[name] if reference == "float64" else 5 * TOLERANCE[name]
    return {"error": worst, "reference": reference, "ok": worst <= limit, "same_bits": same}


def main() -> int:
    """Check every kernel at its shapes; returns the exit code."""
    asked = Arguments(__doc__)
    sys.path.insert(0, str(ROOT / "tests" / "kernels"))
    import interpreted

    if asked.rehearse:
        interpreted.prepare()
    else:
        interpreted.poison_new_memory()
    from reptrain_kernels.bench.operations import OPERATIONS

    cases = []
    for name, shapes in SHAPES.items():
        for shape_name in shapes[:1] if asked.rehearse else shapes:
            shape = next(shape for shape in OPERATIONS[name].shapes if shape.name == shape_name)
            if asked.rehearse:
                shape = shape._replace(**SMALL[name])
            cases.append((f"{name} {shape_name}", partial(check, OPERATIONS[name], shape, asked.device)))
    return run_cases(PART, cases, asked, is_bad=lambda found: not (found["ok"] and found["same_bits"]))


if __name__ == "__main__":
    sys.exit(main())
