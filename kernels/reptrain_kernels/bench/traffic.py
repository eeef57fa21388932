"""The necessary work of operations, the work of their kernels, and their times at the rates of A100 and H100.

    python -m reptrain_kernels.bench.traffic

Nothing is measured. The roofline is the time of the busiest unit for the work that no implementation can
avoid; the model is the same for the work that these kernels do, each for itself. Neither knows of latency, of
the order of instructions or of an L2 cache that misses.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from reptrain_kernels.bench.operation import RATES, Operation
from reptrain_kernels.bench.operations import OPERATIONS


class Modelled(NamedTuple):
    """One pass of an operation at one shape on one chip."""

    operation: str
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


def modeled(operation: Operation, shape: Any, capability: int) -> list[Modelled]:
    """Forward and backward."""
    rates = RATES[capability]
    rows = []
    moved = operation.moved(shape, capability)
    for needed, kernels in zip(operation.needed(shape), moved, strict=True):
        least, unit = needed.seconds(rates)
        times = [kernel.seconds(rates) for kernel in kernels]
        model_us = 1e6 * sum(seconds for seconds, _ in times)
        busiest = max(times)[1]
        about = (operation.name, shape.name, rates.name, needed.what)
        rows.append(Modelled(*about, 1e6 * least, unit, model_us, busiest))
    return rows


def table(operations: Iterable[Operation] = OPERATIONS.values()) -> list[Modelled]:
    """Every shape on every chip, but products of fp32, whose rates are not known."""
    return [
        row
        for operation in operations
        for shape in operation.shapes
        if shape.dtype != torch.float32 or not operation.matrix_kernels
        for capability in RATES
        for row in modeled(operation, shape, capability)
    ]


def text(rows: Iterable[Modelled]) -> str:
    """The table as text."""
    line = "{:22} {:28} {:10} {:9} {:>12} {:13} {:>9} {:13} {:>6}\n"
    head = ("operation", "shape", "chip", "pass", "roofline us", "by", "model us", "by", "ratio")
    return line.format(*head) + "".join(
        line.format(
            *row[:4],
            f"{row.roofline_us:.1f}",
            row.roofline_unit,
            f"{row.model_us:.1f}",
            row.model_unit,
            f"{row.ratio:.2f}",
        )
        for row in rows
    )


if __name__ == "__main__":
    sys.stdout.write(text(table()))
