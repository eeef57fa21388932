"""The table of compiled kernels, kernels/bench/results/compiled.csv.

python -m reptrain_kernels.bench.compiled               rewrites the table (minutes)
python -m reptrain_kernels.bench.compiled --only NAME   the rows of one operation
python -m reptrain_kernels.bench.compiled --check       lists where the code is worse than in the table
python -m reptrain_kernels.bench.compiled --quick       one shape of each operation, with all its features

The table of the pinned Triton is compiled.csv. The oldest version that setup.cfg promises has a table of its
own, compiled-triton-X.Y.csv, of the quick shapes; Triton of that version reads and writes it.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, get_type_hints

import triton

from reptrain_kernels.bench.compilation import CHIPS, Launch, Resources, compile_launch, launches
from reptrain_kernels.bench.operations import OPERATIONS

RESULTS = Path(__file__).parents[2] / "bench" / "results"
TABLE = RESULTS / "compiled.csv"
OLDEST = RESULTS / "compiled-triton-3.6.csv"

# One shape of each operation, with all its features.
QUICK = {
    "attention": "T5-Base dropout encoder",
    "dropout": "T5-Base embedding",
    "norm": "T5-Base dropout, path",
    "gated": "T5-Base dropout",
    "rope": "Llama-1B documents",
    "grouped": "MoE-Base dropout",
    "permute": "MoE-Base",
    "router": "MoE-Base",
    "linear_cross_entropy": "T5-Base smoothed, z-loss",
}


def table_of(version: str = triton.__version__) -> Path:
    """The table that a version of Triton is held against."""
    return OLDEST if OLDEST.stem.endswith("-" + ".".join(version.split(".")[:2])) else TABLE


class Entry(NamedTuple):
    """One operation at one shape."""

    operation: str
    shape: str
    launch: Callable[[], object]
    capabilities: tuple[int, ...] = (80, 90)


class Row(NamedTuple):
    """One kernel of an entry, compiled for one chip."""

    operation: str
    shape: str
    kernel: str
    capability: int
    tile: str
    num_warps: int
    num_stages: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    warps_resident: int
    matrix: str

    @property
    def name(self) -> tuple[str, str, str, int]:
        """What the row is about."""
        return self[:4]


def entries() -> list[Entry]:
    """All that is compiled."""
    return [
        Entry(
            operation.name,
            shape.name,
            operation.launch(shape),
            (80, 90, 100) if shape.name in operation.on_blackwell else (80, 90),
        )
        for operation in OPERATIONS.values()
        for shape in operation.shapes
    ]


def quick_entries(chosen: Iterable[Entry]) -> list[Entry]:
    """Of entries the quick ones, for A100 and H100."""
    return [e._replace(capabilities=(80, 90)) for e in chosen if e.shape == QUICK[e.operation]]


def compile_entries(chosen: Iterable[Entry]) -> Iterator[Row]:
    """The rows of some launches. Launches that are equal for the compiler are compiled once."""
    known: dict[str, Resources] = {}
    for entry in chosen:
        for capability in entry.capabilities:
            for launch in launches(entry.launch, capability=capability):
                found = compile_launch(launch, capability=capability, known=known)
                yield _row(entry, launch, capability, found)


def _row(entry: Entry, launch: Launch, capability: int, found: Resources) -> Row:
    sizes = [str(size) for name, size in launch.keywords.items() if name.startswith("BLOCK")]
    return Row(
        entry.operation,
        entry.shape,
        launch.kernel.fn.__name__.removesuffix("_kernel"),
        capability,
        "x".join(sizes),
        launch.keywords.get("num_warps", 4),
        launch.keywords.get("num_stages", 3),
        found.registers,
        found.spill_bytes,
        found.shared_bytes,
        found.warps,
        found.matrix,
    )


def read_table(path: Path | None = None) -> dict[tuple[str, str, str, int], Row]:
    """The rows by operation, shape, kernel and compute capability; None reads the table of this Triton.

    Of a kernel that an entry launches twice, the last row counts.
    """
    path = path or table_of()
    if not path.exists():
        return {}
    types = get_type_hints(Row)
    with path.open(newline="") as file:
        rows = [Row(**{name: types[name](x) for name, x in row.items()}) for row in csv.DictReader(file)]
    return {row.name: row for row in rows}


def complaints(rows: Iterable[Row], table: dict[tuple[str, str, str, int], Row]) -> list[str]:
    """What is worse than it may be: too much shared memory always, the rest against the table.

    For A100 and H100 the pinned Triton may not spill at all; an older one as much as its table says.
    """
    found = []
    may_spill = table_of() == OLDEST
    for row in rows:
        before = table.get(row.name)
        about = " ".join(map(str, row.name))
        is_known = before is not None and (may_spill or row.capability >= 100)
        if row.spill_bytes > (before.spill_bytes if before is not None and is_known else 0):
            found.append(f"{about}: spills {row.spill_bytes} bytes")
        if row.shared_bytes > CHIPS[row.capability].shared_bytes_per_block:
            found.append(f"{about}: {row.shared_bytes} bytes of shared memory are more than the chip has")
        if before is None:
            found.append(f"{about}: not in {table_of().name}; rebuild the table")
        elif row.warps_resident < before.warps_resident or row.matrix != before.matrix:
            found.append(
                f"{about}: {row.warps_resident} warps by {row.matrix}, "
                f"were {before.warps_resident} by {before.matrix}"
            )
    return found


def write_table(rows: Iterable[Row], path: Path | None = None) -> None:
    """One line a row, in the order of the entries; None writes the table of this Triton."""
    path = path or table_of()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows({row.name: row for row in rows}.values())


def main(arguments: list[str]) -> int:
    """The command; 1 where something is worse."""
    parser = argparse.ArgumentParser(description="What the kernels take, compiled without a GPU.")
    parser.add_argument("--check", action="store_true", help="compare with the table, and leave it")
    parser.add_argument("--only", choices=OPERATIONS, help="one operation")
    parser.add_argument("--quick", action="store_true", help="one shape of each operation, A100 and H100")
    asked = parser.parse_args(arguments)
    chosen = [entry for entry in entries() if asked.only in (None, entry.operation)]
    if asked.quick:
        chosen = quick_entries(chosen)
    rows = list(compile_entries(chosen))
    if not asked.check:
        # Read now: who compiled another operation meanwhile has written it.
        new = {row.name for row in rows}
        is_part = asked.quick or asked.only is not None
        kept = [row for row in read_table().values() if is_part and row.name not in new]
        order = list(OPERATIONS)
        write_table(sorted(kept + rows, key=lambda row: order.index(row.operation)))
    found = complaints(rows, read_table())
    sys.stdout.writelines(f"{line}\n" for line in found)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
