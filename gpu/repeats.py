"""Two equal runs on one device, compared step by step: whether training repeats bit for bit there.

Losses, gradient norms and the hashes of the weights before and after each update are compared, in fp32 and in
the device's default precision.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from rows import KIT, Arguments, run_cases
from runs import TINY, config_of, train_steps

PART = "repeats"
STEPS = 8


def figures(name: str, device: str, precision: str) -> list[dict[str, Any]]:
    """The compared figures of each step of a tiny model."""
    config = config_of(TINY[name], KIT / "store", 8, STEPS, precision=precision, micro_batch_windows=4)
    return [
        {
            "digest": result.digest,
            "input digest": result.input_digest,
            "loss": result.loss_nats,
            "gradient norm": result.grad_norm,
            "weights before and after": result.slice_hashes,
        }
        for result, _ in train_steps(config, device)
    ]


def first_difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """The first step and figure in which two runs differ; empty if they are equal."""
    for step, (a, b) in enumerate(zip(one, other, strict=True)):
        for key in a:
            if a[key] != b[key]:
                return f"step {step}: {key}: {a[key]} and {b[key]}"
    return ""


def compare(name: str, device: str, precision: str) -> dict[str, Any]:
    """Train a tiny model twice; returns whether the runs are equal, and the first difference."""
    one, other = (figures(name, device, precision) for _ in range(2))
    difference = first_difference(one, other)
    return {"equal": not difference, "first_difference": difference}


def main() -> int:
    """Compare all tiny models; returns the exit code. A difference is a result, not a failure."""
    asked = Arguments(__doc__)
    cases = [
        (f"{name}, {precision}", partial(compare, name, asked.device, precision))
        for precision in ("fp32", "auto")
        for name in TINY
    ]
    return run_cases(PART, cases, asked)


if __name__ == "__main__":
    sys.exit(main())
