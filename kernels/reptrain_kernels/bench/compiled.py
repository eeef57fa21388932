"""The table of compiled kernels, kernels/bench/results/compiled.csv.

python -m reptrain_kernels.bench.compiled               writes it anew, in some minutes
python -m reptrain_kernels.bench.compiled --only NAME   the rows of one operation
python -m reptrain_kernels.bench.compiled --check       tells where the code has become worse than the table
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, get_type_hints

from reptrain_kernels.bench.compilation import CHIPS, Launch, Resources, compile_launch, launches
from reptrain_kernels.bench.operations import OPERATIONS

RESULTS = Path(__file__).parents[2] / "bench" / "results"
TABLE = RESULTS / "compiled.csv"


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


def compile_entries(chosen: Iterable[Entry]) -> Iterator[Row]:
    """Their rows; what is the same to the compiler is compiled once."""
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


def read_table(path: Path = TABLE) -> dict[tuple[str, str, str, int], Row]:
    """The rows by what they are about. A kernel that an entry launches twice has the last one's."""
    types = get_type_hints(Row)
    with path.open(newline="") as file:
        rows = [Row(**{name: types[name](x) for name, x in row.items()}) for row in csv.DictReader(file)]
    return {row.name: row for row in rows}


def complaints(rows: Iterable[Row], table: dict[tuple[str, str, str, int], Row]) -> list[str]:
    """What is worse than it may be: spills and too much shared memory always, the rest against the table."""
    found = []
    for row in rows:
        before = table.get(row.name)
        about = " ".join(map(str, row.name))
        if row.spill_bytes > (0 if row.capability < 100 or before is None else before.spill_bytes):
            found.append(f"{about}: spills {row.spill_bytes} bytes")
        if row.shared_bytes > CHIPS[row.capability].shared_bytes_per_block:
            found.append(f"{about}: {row.shared_bytes} bytes of shared memory are more than the chip has")
        if before is None:
            found.append(f"{about}: not in {TABLE.name}; write it anew")
        elif row.warps_resident < before.warps_resident or row.matrix != before.matrix:
            found.append(
                f"{about}: {row.warps_resident} warps by {row.matrix}, "
                f"were {before.warps_resident} by {before.matrix}"
            )
    return found


def write_table(rows: Iterable[Row], path: Path = TABLE) -> None:
    """One line a row, in the order of the entries."""
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
    asked = parser.parse_args(arguments)
    chosen = [entry for entry in entries() if asked.only in (None, entry.operation)]
    rows = list(compile_entries(chosen))
    if not asked.check:
        # Read now: who compiled another operation meanwhile has written it.
        kept = [row for row in read_table().values() if asked.only not in (None, row.operation)]
        order = list(OPERATIONS)
        write_table(sorted(kept + rows, key=lambda row: order.index(row.operation)))
    found = complaints(rows, read_table())
    sys.stdout.writelines(f"{line}\n" for line in found)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
