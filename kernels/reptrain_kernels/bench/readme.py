"""The tables of kernels/README.md; `python -m reptrain_kernels.bench.readme` rewrites them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from reptrain_kernels.bench.compiled import read_table
from reptrain_kernels.bench.traffic import table

README = Path(__file__).parents[2] / "README.md"
_SHAPES = (
    "T5-Base encoder",
    "T5-Base dropout encoder",
    "T5-Base dropout decoder",
    "T5-11B (1.0) dropout decoder",
)
_SHAPES += ("Llama-1B", "Llama-7B dropout", "head 256", "T5-Base fp32")
_MATRIX_KERNELS = ("forward", "query_gradient", "key_gradient")


def _markdown(head: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    rows = [list(head), *([str(cell) for cell in line] for line in lines)]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def compiled() -> str:
    """The kernels that multiply matrices, at some shapes."""
    rows = read_table().values()
    return _markdown(
        (
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
        ),
        (
            (
                row.shape,
                row.kernel,
                row.capability,
                # The heads' width, then queries and keys.
                row.tile,
                row.num_warps,
                row.registers,
                row.spill_bytes,
                f"{row.shared_bytes / 1024:.0f}",
                row.warps_resident,
                row.matrix,
            )
            for row in rows
            if row.shape in _SHAPES and row.kernel in _MATRIX_KERNELS
        ),
    )


def modelled() -> str:
    """Roofline and model, at some shapes."""
    return _markdown(
        ("shape", "chip", "pass", "roofline µs", "by", "model µs", "by", "ratio"),
        (
            (
                row.shape,
                row.chip,
                row.what,
                f"{row.roofline_us:.0f}",
                row.roofline_unit,
                f"{row.model_us:.0f}",
                row.model_unit,
                f"{row.ratio:.2f}",
            )
            for row in table()
            if row.shape in _SHAPES
        ),
    )


TABLES: dict[str, Callable[[], str]] = {"compiled": compiled, "modelled": modelled}


def rewritten(text: str) -> str:
    """A page with the tables between their marks made anew."""
    for name, make in TABLES.items():
        mark = f"<!-- {name} -->"
        block = rf"{mark}\n.*?{mark}"
        assert re.search(block, text, flags=re.DOTALL), f"README.md: no marks for {name}"
        made = f"{mark}\n{make()}\n{mark}"
        text = re.sub(block, lambda _, made=made: made, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text()))
    sys.exit()
