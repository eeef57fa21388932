"""Kernels compiled for A100 and H100 without a GPU, against the committed table; the model of traffic."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from time_limits import takes_up_to

from reptrain_kernels.bench.compilation import CHIPS, resident_blocks
from reptrain_kernels.bench.compiled import (
    OLDEST,
    TABLE,
    Row,
    compile_entries,
    complaints,
    entries,
    quick_entries,
    read_table,
    table_of,
    write_table,
)
from reptrain_kernels.bench.operation import RATES
from reptrain_kernels.bench.operations import OPERATIONS
from reptrain_kernels.bench.pages import PAGE, page
from reptrain_kernels.bench.traffic import table
from reptrain_kernels.ops.attention.bench import ATTENTION, attention_moved, attention_needed
from reptrain_kernels.ops.attention.tiles import attention_tiles

# Triton of another version has a table of its own.
of_pinned = pytest.mark.skipif(table_of() != TABLE, reason="the pinned Triton's table")


@pytest.fixture(scope="module")
@takes_up_to(900)
def rows() -> list[Row]:
    """One shape of each operation, compiled for A100 and H100."""
    return [*compile_entries(quick_entries(entries()))]


def test_compiled_kernels_are_no_worse_than_the_table(rows: list[Row]) -> None:
    assert {(row.operation, row.capability) for row in rows} == {
        (name, sm) for name in OPERATIONS for sm in RATES
    }
    for row in rows:
        assert OPERATIONS[row.operation].matrix_kernels <= {row.kernel for row in rows}
    assert complaints(rows, read_table()) == []


def test_compiled_matrix_kernels_use_the_chips_matrix_units(rows: list[Row]) -> None:
    for row in rows:
        if row.kernel in OPERATIONS[row.operation].matrix_kernels:
            assert row.matrix == {80: "mma", 90: "wgmma"}[row.capability]


@of_pinned
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_table_is_no_worse_at_every_shape() -> None:
    assert complaints(compile_entries(entries()), read_table()) == []


def test_compiled_table_has_every_matrix_kernel_without_a_spill() -> None:
    rows = read_table(TABLE).values()
    assert {(row.operation, row.shape) for row in rows} == {
        (operation.name, shape.name) for operation in OPERATIONS.values() for shape in operation.shapes
    }
    for row in rows:
        assert row.spill_bytes == 0 or row.capability >= 100, row
        assert row.warps_resident > 0, row
        half = "fp32" not in row.shape
        if row.kernel in OPERATIONS[row.operation].matrix_kernels and half and row.capability == 80:
            assert row.matrix == "mma", row


@of_pinned
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spill_bytes": 8}, "spills 8 bytes"),
        ({"shared_bytes": 170_000}, "more than the chip has"),
        ({"warps_resident": 4}, "4 warps by mma, were 8 by mma"),
        ({"matrix": "none"}, "8 warps by none, were 8 by mma"),
        ({"shape": "unknown"}, "not in compiled.csv"),
        ({"registers": 12, "warps_resident": 16}, None),
    ],
)
def test_complaints_name_the_regressions(change: dict[str, object], said: str | None) -> None:
    row = Row("attention", "some", "forward", 80, "64x64", 4, 2, 128, 0, 50_000, 8, "mma")
    found = complaints([row._replace(**change)], {row.name: row})
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_table_of_the_oldest_triton_has_every_kernel_for_both_chips() -> None:
    quick = {(entry.operation, entry.shape) for entry in quick_entries(entries())}
    pinned = {name for name in read_table(TABLE) if name[:2] in quick and name[3] in RATES}
    assert read_table(OLDEST).keys() == pinned


@pytest.mark.parametrize(
    ("version", "table"), [("3.6.0", OLDEST), ("3.6.1", OLDEST), ("3.7.1", TABLE), ("3.66.0", TABLE)]
)
def test_table_of_follows_the_version(version: str, table: Path) -> None:
    assert table_of(version) == table


def test_oldest_table_is_of_the_version_that_setup_promises() -> None:
    promised = re.search(r"triton>=([\d.]+)", (Path(__file__).parents[2] / "setup.cfg").read_text())
    assert promised and table_of(f"{promised[1]}.0") == OLDEST


def test_write_table_is_read_back(tmp_path: Path) -> None:
    rows = read_table(TABLE)
    write_table(rows.values(), tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == TABLE.read_text()


@pytest.mark.parametrize(
    ("registers", "shared_bytes", "num_warps", "blocks"),
    [(255, 0, 4, 2), (128, 0, 4, 4), (129, 0, 4, 3), (32, 100_000, 4, 1), (32, 0, 8, 8), (32, 170_000, 4, 0)],
)
def test_resident_blocks_follow_the_chips_limits(
    registers: int, shared_bytes: int, num_warps: int, blocks: int
) -> None:
    assert resident_blocks(CHIPS[80], registers, shared_bytes, num_warps) == blocks


def test_traffic_of_attention_is_counted_as_by_hand() -> None:
    shape = next(shape for shape in ATTENTION if shape.name == "T5-Base encoder")
    pairs = 16 * 12 * 512 * 512
    forward, backward = attention_needed(shape)
    assert forward.matrix_flops == 4 * pairs * 64
    assert backward.matrix_flops == 10 * pairs * 64
    tensor = 16 * 512 * 12 * 64 * 2
    assert forward.memory_bytes == 4 * tensor + 16 * 12 * 512 * 4
    first, rest = attention_moved(shape, 80)
    kernels = first + rest
    assert [kernel.matrix_flops for kernel in kernels] == [4 * pairs * 64, 6 * pairs * 64, 8 * pairs * 64]
    # The keys and values of 32 positions, staged and then read by four warps, and the queries.
    tiles = 16 * 12 * 4 * 16
    assert attention_tiles("forward", 64, 2, 80, True)[:3] == (128, 32, 4)
    assert kernels[0].shared_bytes == tiles * 2 * 64 * (2 * 32 + 2 * 4 * 32 + 128)


@pytest.mark.parametrize("capability", RATES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_traffic_moves_no_less_than_it_must(name: str, capability: int) -> None:
    operation = OPERATIONS[name]
    for shape in operation.shapes:
        moved = operation.moved(shape, capability)
        for needed, done in zip(operation.needed(shape), moved, strict=True):
            for unit in ("matrix_flops", "integers", "exps", "memory_bytes"):
                assert sum(getattr(kernel, unit) for kernel in done) >= getattr(needed, unit), (shape, unit)


def test_traffic_table_has_no_time_below_its_roofline() -> None:
    assert all(round(row.ratio, 9) >= 1 for row in table())


def test_kernels_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run python -m reptrain_kernels.bench.pages"
