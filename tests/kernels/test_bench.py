"""The bench of the kernels: its gate, its rows, its command."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreted import results_of
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain_kernels.bench.operations import OPERATIONS
from reptrain_kernels.bench.timed import Row, append


@pytest.fixture(scope="module")
def found() -> Any:
    return results_of("bench_interpreted.py")


def test_each_right_way_is_timed_in_both_passes(found: Any) -> None:
    timed = [(row["way"], row["what"]) for row in found["rows"] if not row["said"]]
    ways = ("triton", "torch", "sdpa alone")
    assert timed == [(way, what) for way in ways for what in ("forward", "both")]
    for row in found["rows"]:
        assert row["shape"] == "small"
        assert row["said"] or float(row["median_us"]) > 0 < float(row["share_of_copy"])


def test_ways_that_differ_or_fail_are_not_timed_and_say_so(found: Any) -> None:
    said = {row["way"]: row["said"] for row in found["rows"] if row["said"]}
    assert said.keys() == {"wrong", "failing"}
    assert said["wrong"] == "differs from the definition by 1.0e-02"
    assert said["failing"].startswith("RuntimeError: shape '[3]' is invalid")


def test_ways_with_several_outputs_are_held_against_all_of_them(found: Any) -> None:
    rows = [(row["way"], row["what"], row["said"][:7]) for row in found["several"]]
    right = [(way, what, "") for way in ("triton", "torch") for what in ("forward", "both")]
    assert rows == [*right, ("wrong", "both", "differs")]


def test_shapes_after_the_time_is_up_are_said(found: Any) -> None:
    assert [(row["shape"], row["said"]) for row in found["late"]] == [("small", "not begun: out of time")]


def test_append_adds_to_what_is_there(found: Any, tmp_path: Path) -> None:
    rows = [Row(**row) for row in found["rows"]]
    for _ in range(2):
        append(iter(rows), tmp_path / "results" / "gpu.csv")
    with (tmp_path / "results" / "gpu.csv").open(newline="") as file:
        assert [Row(**row) for row in csv.DictReader(file)] == rows + rows


@pytest.mark.parametrize("name", OPERATIONS)
def test_ways_can_be_built_for_every_operation(name: str) -> None:
    operation = OPERATIONS[name]
    shapes = [shape for shape in operation.shapes if shape.name in operation.shown]
    assert {shape.name for shape in shapes} == set(operation.shown)
    for shape in shapes:
        ways = operation.ways(shape, "meta")
        assert {"triton", "torch"} <= ways.calls.keys() > ways.yardsticks
        assert all(leaf.requires_grad and leaf.dtype.is_floating_point for leaf in ways.leaves)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "norms"], "--only: must be one of attention"),
        pytest.param(
            [],
            "needs a CUDA device, but got none",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU"),
        ),
    ],
)
def test_bench_refuses_what_cannot_be_timed(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", "kernels", *arguments])
    assert said in str(result.exception)


def test_bench_prints_modelled_times() -> None:
    result = CliRunner().invoke(app, ["bench", "kernels", "--model", "--only", "attention"])
    lines = result.output.splitlines()
    assert lines[0].split()[:3] == ["operation", "shape", "chip"]
    assert any("T5-Base encoder" in line and "A100-80GB" in line for line in lines)
