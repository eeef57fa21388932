"""Two equal runs on one device, compared step by step: whether training repeats bit for bit there.

Losses, gradient norms and the hashes of the weights before and after each update are compared, in fp32 and in
the device's default precision.
"""

from __future__ import annotations

import sys
from typing import Any

from rows import KIT, RESTART, Arguments, add, is_fatal, said
from runs import TINY, config_of, train_steps

PART = "repeats"
STEPS = 8


def figures(name: str, device: str, precision: str) -> list[dict[str, Any]]:
    """What is compared, of each step of a tiny model."""
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


def main() -> int:
    """All tiny models; one that fails leaves the others. A difference is a finding, not a failure."""
    asked = Arguments(__doc__)
    bad = 0
    for precision in ("fp32", "auto"):
        for name in TINY:
            title = f"{name}, {precision}"
            if asked.is_late():
                add(PART, title, said="not begun: out of time")
                continue
            try:
                one, other = (figures(name, asked.device, precision) for _ in range(2))
                found = first_difference(one, other)
                add(PART, title, equal=not found, first_difference=found)
            except Exception as error:
                add(PART, title, said=said(error))
                bad += 1
                if is_fatal(error):
                    return RESTART
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
