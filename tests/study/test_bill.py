"""What a study will cost, from its graph and its finished runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from done_tables import write_table
from run_folders import write_run
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.cli.study_plan import bill_data, bill_text
from reptrain.config.load import dump_yaml
from reptrain.errors import StudyError
from reptrain.sizes import count_parameters, train_flops_per_window
from reptrain.study import StudyConfig
from reptrain.study.bill import Bill, Hardware, bill_of
from reptrain.study.budget import over_budget
from reptrain.study.build import build_graph
from reptrain.study.done_table import read_done
from reptrain.study.paths import run_path

BASE: dict[str, Any] = {
    "data": {"store": "s", "unique_tokens": 4096, "window_tokens": 64},
    "model": {"vocab_size": 512, "d_model": 64, "num_layers": 2, "num_heads": 2, "d_ff": 128},
    "train": {"total_tokens": 16384, "batch_windows": 8},
    "schedule": {"name": "constant", "warmup_fraction": 0},
}


def study_of(**fields: Any) -> StudyConfig:
    return StudyConfig(**{"name": "s", "base": BASE, **fields})


def bill(study: StudyConfig, out: Path, **hardware: Any) -> Bill:
    return bill_of(study, build_graph(study, out), out, Hardware(**hardware))


def test_bill_counts_tokens_and_flops_and_shared_prefixes_once(tmp_path: Path) -> None:
    study = study_of(axes={"train.total_tokens": [4096, 16384]})
    found = bill(study, tmp_path)
    assert [(row.tokens, row.shared_tokens) for row in found.rows] == [(16384, 0), (0, 4096)]
    config = found.rows[0].node.run
    per_window = train_flops_per_window(config.model, 512, config.example_shape)
    assert found.rows[0].flops == pytest.approx(16384 / 64 * per_window)
    text = bill_text(found)
    assert "shared prefixes: 4,096 tokens are trained once, 20% saved" in text
    assert "speed: unknown, since no run is finished (set --hardware)" in text and found.device_hours is None
    assert json.loads(json.dumps(bill_data(found)))["runs"][1]["branch_of"] == "total_tokens-16384"


def test_bill_takes_the_speed_of_finished_runs_of_the_same_shape(tmp_path: Path) -> None:
    study = study_of(axes={"model.d_ff": [128, 256]}, seeds=[0, 1])
    graph = build_graph(study, tmp_path)
    write_run(graph.nodes[0].run, run_path(tmp_path, graph.nodes[0].name))
    found = bill(study, tmp_path, runs_at_once=2, usd_per_hour=36.0)
    assert [row.is_done for row in found.rows] == [True, False, False, False]
    # The fake run trains 1,000 tokens/s; the larger model at the same FLOP/s.
    larger = found.rows[2].flops / found.rows[0].flops
    assert [row.seconds for row in found.rows[1:3]] == pytest.approx([16.384, 16.384 * larger])
    hours = (16.384 + 2 * 16.384 * larger) / 3600
    assert found.device_hours == pytest.approx(hours) and found.hours == pytest.approx(hours / 2)
    assert found.usd == pytest.approx(36 * hours)


def test_tuning_that_is_partly_done_elsewhere_is_not_run_again(tmp_path: Path) -> None:
    study = study_of(tune={"axes": {"optimizer.lr": [1e-3, 2e-3, 4e-3]}, "seeds": [90]})
    graph = build_graph(study, tmp_path)
    first, second, *_ = graph.trainings
    elsewhere = read_done(write_table(tmp_path / "runs.parquet", [first, second])).rows
    found = bill_of(study, graph, tmp_path, Hardware(), elsewhere)
    assert [row.is_done for row in found.rows] == [True, True, False, False]
    assert (found.offered, found.taken) == (2, 2)


def test_bill_of_a_named_device(tmp_path: Path) -> None:
    found = bill(study_of(), tmp_path, name="A100", mfu=0.5, devices_per_run=1)
    assert found.rows[0].seconds == pytest.approx(found.rows[0].flops / (312e12 * 0.5))
    with pytest.raises(StudyError, match="must be a device with a published peak"):
        bill(study_of(), tmp_path, name="Abacus")


@pytest.mark.parametrize(("rule", "number"), [("all", 2), ("last", 1), ("none", 0)])
def test_bill_has_the_disk_of_checkpoints_under_the_retention_rule(
    tmp_path: Path, rule: str, number: int
) -> None:
    found = bill(study_of(keep_checkpoints=rule), tmp_path)
    parameters = count_parameters(found.rows[0].node.run.model, 512).total
    assert found.disk_bytes == number * 12 * parameters


def test_bill_names_the_most_tuning_runs(tmp_path: Path) -> None:
    tune = {"axes": {"optimizer.lr": [1e-3, 2e-3, 4e-3]}, "seeds": [90, 91], "extend": 2}
    arms = [{"name": "a"}, {"name": "b", "set": {"model.d_ff": 64}}]
    found = bill(study_of(arms=arms, tune=tune, then=[{"name": "x", "do": "evaluate"}]), tmp_path)
    assert (len(found.rows), found.most_extensions, found.num_commands) == (14, 8, 2)


@pytest.mark.parametrize(
    ("budget", "excess"),
    [
        ("1e30flops", None),
        ("20k tokens", None),
        ("10k tokens", "16,384 tokens are needed, 10,000 tokens is the budget"),
        ("1flops", "flops are needed"),
        ("1e-9h", "h are needed"),
    ],
)
def test_over_budget_compares_what_is_left(tmp_path: Path, budget: str, excess: str | None) -> None:
    found = over_budget([bill(study_of(), tmp_path, name="A100")], budget)
    assert found is None if excess is None else excess in str(found)


@pytest.mark.parametrize("budget", ["24", "h", "-1h", "1year", "2**3usd", "nanh"])
def test_over_budget_refuses_what_is_no_budget(tmp_path: Path, budget: str) -> None:
    with pytest.raises(StudyError, match="must be a number with a unit, such as 24h"):
        over_budget([bill(study_of(), tmp_path, name="A100")], budget)


def test_over_budget_needs_a_price_and_a_speed(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="Add --hardware"):
        over_budget([bill(study_of(), tmp_path)], "1h")
    with pytest.raises(StudyError, match="Add --usd-per-hour"):
        over_budget([bill(study_of(), tmp_path, name="A100")], "1usd")


def test_bill_needs_the_vocabulary(tmp_path: Path) -> None:
    study = study_of(set={"model.vocab_size": None})
    with pytest.raises(StudyError, match=r"must exist to know its vocabulary.*reptrain tokenize"):
        bill(study, tmp_path)


def test_named_hardware_runs_as_many_at_once_as_there_are_gpus_not_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(dump_yaml({"base": BASE, "seeds": [0, 1]}))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)))
    for gpus, options, at_once in (
        (0, [], 6),
        (0, ["--hardware", "A100"], 1),
        (0, ["--hardware", "A100", "--gpus", "8"], 1),
        (0, ["--hardware", "A100", "--jobs", "3"], 3),
        (8, ["--hardware", "A100", "--gpus", "2"], 4),
    ):
        monkeypatch.setattr("reptrain.study.local_pool.visible_gpus", lambda gpus=gpus: tuple(range(gpus)))
        ended = CliRunner().invoke(app, ["study", "plan", str(file), "--out", str(tmp_path / "s"), *options])
        assert ended.exit_code == 0, ended.output
        if options:
            assert f" hours with {at_once} run" in ended.stdout
