"""The tables of docs/paper.md."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest


@pytest.fixture(scope="module")
def tool(open_tool: Callable[[str], ModuleType]) -> ModuleType:
    return open_tool("paper_tables")


def run(entry: str, seed: int, final: float, best: float, **more: Any) -> dict[str, Any]:
    return {
        "set.entry": entry,
        "seed": seed,
        "role": "main",
        "status": "done",
        "loss_report_final_nats": final,
        "loss_report_best_nats": best,
        "snapshots.report.loss_nats": None,
    } | more


def test_arms_are_compared_by_seed_with_the_plain_one(tool: ModuleType) -> None:
    rows = [run("plain", seed, 5.0 + seed, 4.0) for seed in range(5)]
    rows += [run("dropout", seed, 4.0 + seed + 0.1 * (seed - 2), 4.0) for seed in range(5)]
    rows += [run("cyclic", 1, 5.5, 4.5, **{"snapshots.report.loss_nats": 3.5})]
    rows += [run("dropout", 9, 0.0, 0.0, status="failed"), run("plain", 9, 0.0, 0.0, role="tune")]
    lines = tool.methods_table(pa.Table.from_pylist(rows))
    # The differences -1.2, -1.1, ..., -0.8 have the standard error 0.1 / sqrt(2), and t(0.975, 4) = 2.776.
    assert lines[1:5] == [
        "| plain | 5 | 7.000 |  | 4.000 |  |",
        "| dropout | 5 | 6.000 | -1.000 [-1.196, -0.804] | 4.000 | +0.000 |",
        "| cyclic | 1 | 5.500 | -0.500 | 4.500 | +0.500 |",
        "| cyclic, weighted snapshots | 1 | 3.500 | -2.500 | 3.500 | -0.500 |",
    ]


def test_there_is_no_table_without_a_finished_plain_run(tool: ModuleType) -> None:
    rows = [run("plain", 0, 1.0, 1.0, status="running"), run("dropout", 0, 1.0, 1.0)]
    assert tool.methods_table(pa.Table.from_pylist(rows)) == []


def test_losses_are_means_over_seeds_by_size_and_epochs(tool: ModuleType) -> None:
    def of(size: int, epochs: float, final: float) -> dict[str, Any]:
        return run("", 0, final, 1.0, parameters_nonembedding=size, epochs=epochs)

    lines = tool.losses_table(pa.Table.from_pylist([of(2000, 16, 7.0), of(1000, 1, 2.0), of(1000, 1, 4.0)]))
    assert lines == [
        "| non-embedding parameters | R = 1 | R = 16 |",
        "|---:|---:|---:|",
        "| 1,000 | 3.00 (1.00) |  |",
        "| 2,000 |  | 7.00 (1.00) |",
    ]
