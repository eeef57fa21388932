"""The bench of the kernels: its gate, its rows, its command."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreted import results_of
from time_limits import takes_up_to
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain_kernels.bench import goals, timed
from reptrain_kernels.bench.operations import OPERATIONS
from reptrain_kernels.bench.rows import Row
from reptrain_kernels.bench.timed import append


@pytest.fixture(scope="module")
@takes_up_to(900)
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


def test_append_adds_to_an_existing_file(found: Any, tmp_path: Path) -> None:
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
        (["--only", "norms"], "--only: must be one of dropout, attention"),
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


def test_bench_prints_modeled_times() -> None:
    result = CliRunner().invoke(app, ["bench", "kernels", "--model", "--only", "attention"])
    lines = result.output.splitlines()
    assert lines[0].split()[:3] == ["operation", "shape", "chip"]
    assert any("T5-Base encoder" in line and "A100-80GB" in line for line in lines)


def test_rows_have_no_commit_where_git_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert timed._commit() == "unknown"


def timed_row(operation: str, shape: str, way: str, median_us: float, **changes: str) -> Row:
    empty = Row(*[""] * len(Row._fields))
    row = empty._replace(operation=operation, shape=shape, way=way, what="both", median_us=str(median_us))
    return row._replace(**changes)


@pytest.mark.parametrize(
    ("operation", "shape", "ways", "expected"),
    [
        ("attention", "T5-Base encoder", {"triton": 100, "sdpa alone": 75}, {"without bias": (0.75, True)}),
        ("attention", "T5-Base encoder of 4096", {"triton": 100, "sdpa alone": 65}, {"bias": (0.65, False)}),
        ("attention", "T5-Base dropout encoder", {"triton": 100, "sdpa alone": 75}, {}),
        ("attention", "Llama-1B", {"triton": 100, "sdpa alone": 75}, {}),
        ("grouped", "MoE-Base dropout", {"triton": 100, "dense": 79}, {"dense products": (0.79, False)}),
        ("linear_cross_entropy", "GPT-2", {"triton": 104, "torch": 100}, {"definition": (1.04, True)}),
        ("linear_cross_entropy", "T5-Base", {"triton": 106, "torch": 100}, {"definition": (1.06, False)}),
        (
            "gated",
            "T5-Base",
            {"triton": 100, "liger": 99},
            {"copy rate": (0.5, False), "liger": (1.01, True)},
        ),
        (
            "gated",
            "T5-Base",
            {"triton": 100, "torch.compile": 90},
            {"copy": (0.5, False), "compile": (1.11, False)},
        ),
    ],
)
def test_goals_are_computed_from_the_rows(
    operation: str, shape: str, ways: dict[str, float], expected: dict[str, tuple[float, bool]]
) -> None:
    rows = [timed_row(operation, shape, way, us, share_of_copy="0.5") for way, us in ways.items()]
    found = goals.verdicts(rows)
    assert len(found) == len(expected)
    for verdict, (words, (got, is_met)) in zip(found, expected.items(), strict=True):
        assert words in verdict.goal and verdict.is_met == is_met
        assert verdict.got == pytest.approx(got, abs=0.005)


def test_goals_hold_the_losss_memory_against_the_definitions() -> None:
    shape = "128k ids 8k targets"
    rows = [
        timed_row("linear_cross_entropy", shape, way, 1.0, peak_mib=peak)
        for way, peak in (("triton", "1700"), ("torch", "13000"), ("liger", "900"))
    ]
    time, memory = goals.verdicts(rows)
    assert (time.is_met, memory.is_met, memory.got) == (True, True, 1700 / 13000)
    failed = timed_row("linear_cross_entropy", shape, "triton", 1.0, said="OutOfMemoryError")
    assert goals.verdicts([failed, *rows[1:]]) == []
    assert goals.text([time, memory._replace(is_met=False)]).splitlines()[0].startswith("MISSED")
