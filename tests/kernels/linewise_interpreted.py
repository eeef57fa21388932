"""Compares linewise operations in Triton with float64, interpreted, and prints the results as JSON.

Arguments: OPERATION:NAME each, the arguments of an operation together. OPERATION is norm, gated, rope or
linear_cross_entropy; NAME is a case, which gives its errors, or a check of this file or of the cases.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import interpreted

interpreted.prepare()

import torch  # noqa: E402
from linewise import case_of, errors_of  # noqa: E402
from torch import Tensor  # noqa: E402


def same_bits(module: Any) -> dict[str, bool]:
    """Whether each way to run a case gives the bits of the first; the registrations must agree too."""
    case = case_of(module, module.OPERATOR_CASE)
    inputs = module.inputs_of(case)
    leaves = [x.detach().requires_grad_() for x in module.leaves_of(inputs)]
    for operator, arguments in module.operators(case, inputs, leaves):
        torch.library.opcheck(operator.overload, arguments)

    def model(*leaves: Tensor) -> Tensor:
        # Not of leaves themselves, and what comes back differs from place to place.
        outputs = module.call(case, inputs, [x * 2 for x in leaves], "triton")
        return sum((y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() for y in outputs)

    def recomputed(*leaves: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(
            model, *leaves, use_reentrant=False, preserve_rng_state=False
        )

    ways: dict[str, Callable[..., Tensor]] = {"eager": model, "again": model, "recomputed": recomputed}
    # Another operation in this process would make dynamo compile `model` with dynamic shapes.
    torch._dynamo.reset()
    ways["compiled"] = torch.compile(model, fullgraph=True, backend="aot_eager")
    grads = {name: torch.autograd.grad(way(*leaves), leaves) for name, way in ways.items()}
    return {
        name: all(torch.equal(a, b) for a, b in zip(grads[name], grads["eager"], strict=True))
        for name in grads
    }


def check(module: Any, name: str) -> dict[str, Any]:
    """The results of a case or a check."""
    if name in module.CASES | module.SLOW_CASES:
        return errors_of(module, name)
    return same_bits(module) if name == "same_bits" else getattr(module, name)()


def cases_of(operation: str) -> Any:
    """The module of cases of an operation, whose kernels get the block sizes of the tests."""
    cases = importlib.import_module(f"{operation}_cases")
    kernels = importlib.import_module(f"reptrain_kernels.ops.{operation}.triton")
    for name, size in getattr(cases, "BLOCKS", {}).items():
        assert hasattr(kernels, name)
        setattr(kernels, name, size)
    return cases


if __name__ == "__main__":
    results = {}
    for operation, group in itertools.groupby(sys.argv[1:], key=lambda argument: argument.split(":")[0]):
        cases = cases_of(operation)
        torch.manual_seed(0)
        results |= {argument: check(cases, argument.split(":")[1]) for argument in group}
    print(json.dumps(results))
