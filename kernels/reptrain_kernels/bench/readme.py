"""The tables of kernels/README.md; `python -m reptrain_kernels.bench.readme` rewrites them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from reptrain_kernels.bench.compiled import TABLE, read_table
from reptrain_kernels.bench.operation import Operation
from reptrain_kernels.bench.operations import OPERATIONS
from reptrain_kernels.bench.traffic import table

README = Path(__file__).parents[2] / "README.md"


def _markdown(head: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    rows = [list(head), *([str(cell) for cell in line] for line in lines)]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def compiled(operation: Operation) -> str:
    """What its kernels take, at some shapes; where it multiplies matrices, of the kernels that do."""
    head = (
        "shape",
        "kernel",
        "sm",
        "tile",
        "warps",
        "registers",
        "spilled",
        "shared KiB",
        "resident warps",
        "by",
    )
    return _markdown(
        head,
        (
            (
                row.shape,
                row.kernel,
                row.capability,
                row.tile,
                row.num_warps,
                row.registers,
                row.spill_bytes,
                f"{row.shared_bytes / 1024:.0f}",
                row.warps_resident,
                row.matrix,
            )
            for row in read_table(TABLE).values()
            if row.operation == operation.name
            and row.shape in operation.shown
            and row.kernel in (operation.matrix_kernels or {row.kernel})
        ),
    )


def _microseconds(us: float) -> str:
    return f"{us:.0f}" if us >= 10 else f"{us:.1f}"


def modelled(operation: Operation) -> str:
    """Roofline and model, at some shapes."""
    return _markdown(
        ("shape", "chip", "pass", "roofline µs", "by", "model µs", "by", "ratio"),
        (
            (
                row.shape,
                row.chip,
                row.what,
                _microseconds(row.roofline_us),
                row.roofline_unit,
                _microseconds(row.model_us),
                row.model_unit,
                f"{row.ratio:.2f}",
            )
            for row in table([operation])
            if row.shape in operation.shown
        ),
    )


TABLES: dict[str, Callable[[Operation], str]] = {"compiled": compiled, "modelled": modelled}


def rewritten(text: str) -> str:
    """A page with the tables between their marks made anew."""
    for operation in OPERATIONS.values():
        for name, make in TABLES.items():
            mark = f"<!-- {name} {operation.name} -->"
            block = rf"{re.escape(mark)}\n.*?{re.escape(mark)}"
            assert re.search(block, text, flags=re.DOTALL), f"README.md: no marks {mark}"
            made = f"{mark}\n{make(operation)}\n{mark}"
            text = re.sub(block, lambda _, made=made: made, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text()))
    sys.exit()
