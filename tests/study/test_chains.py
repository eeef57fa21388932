"""Chains of trainings: an arm that starts from the weights of another arm's runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from done_tables import write_table
from fake_trainer import FAILS
from in_process import InProcess
from run_folders import FakeStore

from reptrain.auditing.report import kept_report
from reptrain.config import RunConfig
from reptrain.config.load import read_yaml
from reptrain.errors import StudyError
from reptrain.hub.saved_model import open_saved_model
from reptrain.runs.folder import RunFolder
from reptrain.runs.parent import read_parent
from reptrain.study import StudyConfig, collect, open_study, run_study, study_status
from reptrain.study.audits import StudyAudits
from reptrain.study.bill import Hardware, bill_of
from reptrain.study.build import build_graph
from reptrain.study.grid import arms
from reptrain.study.looks import most_added
from reptrain.study.paths import config_path, is_run_of, run_path
from reptrain.study.write_tables import study_readings
from reptrain.training.loop import train

BASE: dict[str, Any] = {
    "data": {"store": "s", "unique_tokens": 4096, "window_tokens": 64},
    "train": {"total_tokens": 8192},
    "model": {"vocab_size": 512},
}
CHILD = {"name": "tuned", "set": {"init_from": "first", "optimizer.lr": 1e-4}}
CHAIN = [{"name": "first"}, CHILD, {"name": "last", "set": {"init_from": "tuned", "optimizer.lr": 1e-5}}]


def study_of(**fields: Any) -> StudyConfig:
    return StudyConfig(**{"name": "s", "base": BASE, "arms": CHAIN, **fields})


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptrain.study.preflight.open_store", lambda path, *, named_by: FakeStore())


def run(study: StudyConfig, out: Path, **options: Any) -> dict[str, str]:
    result = run_study(study, out, executor=InProcess(), **options)
    return {outcome.arm: outcome.state for outcome in result.outcomes}


def started(out: Path) -> list[str]:
    return (out / "started.txt").read_text().split()


def test_each_arm_starts_from_the_run_of_its_axes_and_seed(tmp_path: Path) -> None:
    study = study_of(axes={"data.unique_tokens": [2048, 4096]}, seeds=[0, 1])
    nodes = build_graph(study, tmp_path).by_name
    child = nodes["tuned.unique_tokens-2048.seed-1"]
    assert child.parent == "first.unique_tokens-2048.seed-1" and child.inputs == (child.parent,)
    assert child.run.init_from == str(run_path(tmp_path, child.parent))
    assert child.values["init_from"] == "first"
    last = nodes["last.unique_tokens-2048.seed-1"]
    assert last.parent == child.name and last.cluster == child.cluster == child.parent
    assert [len(level) for level in build_graph(study, tmp_path).levels()] == [4, 4, 4]
    # Fingerprints are the same in every folder, and contain the parent's.
    assert build_graph(study, tmp_path / "b").by_name[last.name].fingerprint == last.fingerprint
    other = study_of(
        axes=study.axes, seeds=[0, 1], arms=[{"name": "first", "set": {"optimizer.lr": 0.5}}, *CHAIN[1:]]
    )
    assert build_graph(other, tmp_path).by_name[last.name].fingerprint != last.fingerprint


def test_runs_that_start_from_one_run_are_one_unit(tmp_path: Path) -> None:
    study = study_of(arms=[{"name": "first", "seeds": [7]}, CHILD], seeds=[0, 1])
    nodes = build_graph(study, tmp_path).by_name
    assert [node.parent for node in nodes.values()] == [None, "first.seed-7", "first.seed-7"]
    assert {node.cluster for node in nodes.values()} == {"first.seed-7"}


def test_children_of_one_run_share_their_first_steps(tmp_path: Path) -> None:
    late = {"init_from": "first", "model.dropout.residual": {"value": 0.1, "start": "50%"}}
    arms = [
        {"name": "first"},
        {"name": "plain", "set": {"init_from": "first"}},
        {"name": "late", "set": late},
    ]
    late_node = build_graph(study_of(arms=arms), tmp_path).by_name["late"]
    assert late_node.branch is not None and late_node.branch.parent == "plain"
    assert late_node.cluster == "first" and late_node.parent == "first"


def test_an_axis_compares_a_start_from_an_arm_with_a_start_from_scratch(tmp_path: Path) -> None:
    arms = [{"name": "first"}, {"name": "second", "axes": {"init_from": [None, "first"]}}]
    nodes = build_graph(study_of(arms=arms), tmp_path).by_name
    assert nodes["second.init_from-first"].parent == "first"
    assert nodes["second.init_from-null"].parent is None


def test_a_path_stays_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for path in ("model", "runs/first"):
        (node,) = build_graph(study_of(arms=[], set={"init_from": path}), tmp_path).nodes
        assert node.parent is None and node.run.init_from == path


def from_(parent: str, **fields: Any) -> dict[str, Any]:
    return {"set": {"init_from": parent}, **fields}


T5 = {"model.family": "t5", "objective.name": "span_corruption"}


@pytest.mark.parametrize(
    ("arms", "error"),
    [
        ([from_("b", name="a")], "arm a: init_from: must be an arm.*'b'.*The arms are a"),
        ([from_("a", name="a")], "must not be circular.*a <- a"),
        ([from_("b", name="a"), from_("a", name="b")], "must not be circular.*a <- b <- a"),
        (
            [{"name": "first", "set": {"model.d_ff": 64}}, CHILD],
            "model.d_ff: must be 64, as in first",
        ),
        ([{"name": "first", "set": T5}, CHILD], "arm tuned: model.family: must be t5"),
        (
            [{"name": "first", "axes": {"optimizer.lr": [1e-3, 2e-3]}}, from_("first", name="x")],
            "must select one arm, but got first.lr-0.001, first.lr-0.002",
        ),
        ([{"name": "first", "seeds": [3, 4]}, CHILD], "seed 0, and the seeds 3, 4 of first"),
        ([{"name": "first", "axes": {"init_from": ["first"]}}], "must not be circular"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(tmp_path: Path, arms: list[dict[str, Any]], error: str) -> None:
    with pytest.raises(StudyError, match=error):
        build_graph(study_of(arms=arms, seeds=[0]), tmp_path)


@pytest.mark.usefixtures("fakes")
def test_a_chain_runs_in_order_and_is_skipped_afterwards(tmp_path: Path) -> None:
    study = study_of(arms=[*reversed(CHAIN)])
    assert set(run(study, tmp_path).values()) == {"done"}
    assert started(tmp_path) == ["first", "tuned", "last"]
    written = read_yaml(config_path(tmp_path, "last"))
    assert written["init_from"] == str(run_path(tmp_path, "tuned"))
    # The study in the folder is the same one, wherever it is opened.
    assert set(run(open_study(tmp_path), tmp_path).values()) == {"skipped"}
    assert [row.state for row in study_status(study, tmp_path)] == ["done"] * 3
    assert [row.state for row in collect(study, tmp_path)] == ["done"] * 3
    bill = bill_of(study, build_graph(study, tmp_path), tmp_path, Hardware())
    assert not bill.left and [row.node.name for row in bill.rows] == ["first", "tuned", "last"]


@pytest.mark.usefixtures("fakes")
def test_a_failed_parent_blocks_its_children_alone(tmp_path: Path) -> None:
    arms = [{"name": "first", "seeds": [FAILS, 1]}, CHILD | {"seeds": [FAILS, 1]}]
    assert run(study_of(arms=arms), tmp_path) == {
        "first.seed-13": "failed", "first.seed-1": "done", "tuned.seed-13": "blocked", "tuned.seed-1": "done",
    }  # fmt: skip


@pytest.mark.usefixtures("fakes")
def test_a_parent_that_is_done_elsewhere_runs_only_if_a_child_needs_it(tmp_path: Path) -> None:
    nodes = build_graph(study_of(), tmp_path / "out").by_name
    table = write_table(tmp_path / "a.parquet", [nodes["first"], nodes["tuned"]])
    assert run(study_of(), tmp_path / "out", done=table)["first"] == "done"
    assert started(tmp_path / "out") == ["first", "tuned", "last"]
    all_done = write_table(tmp_path / "b.parquet", [*nodes.values()])
    assert set(run(study_of(), tmp_path / "b", done=all_done).values()) == {"skipped"}


@pytest.mark.usefixtures("fakes")
def test_a_parent_keeps_its_checkpoint_until_its_children_are_done(tmp_path: Path) -> None:
    there: dict[str, bool] = {}

    def see(event: Any) -> None:
        checkpoints = run_path(tmp_path, "first") / "checkpoints"
        if event.kind == "done" and event.arm == "first":
            (checkpoints / "step-1").mkdir(parents=True)
            (checkpoints / "latest").write_text("step-1")
        if event.kind in ("start", "done"):
            there[f"{event.arm} {event.kind}"] = (checkpoints / "latest").exists()

    run(study_of(keep_checkpoints="none"), tmp_path, on_event=see)
    assert there["tuned start"] and not there["last start"]


@pytest.mark.usefixtures("fakes")
def test_arms_of_a_chain_are_tuned_one_after_another(tmp_path: Path) -> None:
    tune = {"axes": {"optimizer.lr": [1e-3, 2e-3, 4e-3]}, "seeds": [90]}
    chain = [{"name": "first"}, {"name": "second", "set": {"init_from": "first"}}]
    study = study_of(arms=chain, tune=tune, seeds=[0, 1])
    states = run(study, tmp_path)
    assert len(states) == 10 and set(states.values()) == {"done"}
    order = started(tmp_path)
    trials = [name for name in order if name.startswith("tune.second")]
    assert order.index("first.seed-0") < min(map(order.index, trials))
    # A tuning run starts from the run of the first seed.
    config = read_yaml(config_path(tmp_path, trials[0]))
    assert config["init_from"] == str(run_path(tmp_path, "first.seed-0")) and config["seed"] == 90
    # All of it counts as done elsewhere, tuning runs by their losses.
    nodes = build_graph(study, tmp_path).nodes
    losses = {node.name: abs(node.run.optimizer.lr - 2e-3) for node in nodes}
    table = write_table(tmp_path / "runs.parquet", nodes, losses=losses)
    other = tmp_path / "other"
    assert set(run(study, other, done=table).values()) == {"skipped"}


def test_second_looks_add_the_seeds_that_parents_need(tmp_path: Path) -> None:
    contrast = {"treatment": {"entry": "tuned"}, "control": {"entry": "last"}, "free": ["optimizer.lr"]}
    claim = {"name": "c", "statement": "It costs.", "contrast": contrast, "seeds": 5, "max_seeds": 7}
    study = study_of(
        seeds=range(5), claims=[claim | {"contrast": contrast | {"free": ["optimizer.lr", "init_from"]}}]
    )
    declared = arms(study)
    assert most_added(study, declared, tmp_path) == 6
    grown = arms(study, more_seeds={"tuned": [5, 6]})
    added = [arm for arm in grown if arm.look == 2]
    assert [arm.name for arm in added] == ["first.seed-5", "first.seed-6", "tuned.seed-5", "tuned.seed-6"]
    assert added[-1].parent == "first.seed-6"


MakeConfig = Callable[..., RunConfig]


def test_a_chain_of_real_runs_starts_from_the_weights(tiny: MakeConfig, tmp_path: Path) -> None:
    short = ["data.unique_tokens=512", "train.total_tokens=1epochs", "train.batch_windows=4"]
    base = tiny(*short, "evaluate.max_windows=4")
    chain = [{"name": "first"}, {"name": "second", "set": {"init_from": "first", "optimizer.lr": 1e-4}}]
    study = StudyConfig(name="s", base=base.model_dump(mode="json"), arms=chain)
    out = tmp_path / "a"
    for node in build_graph(study, out).trainings:
        train(node.run, run_path(out, node.name))
    record = read_parent(run_path(out, "second"))
    assert record is not None and record.weights == open_saved_model(run_path(out, "first")).fingerprint()
    first, second = (reading.row for reading in study_readings(study, out))
    assert first["status"] == second["status"] == "done"
    assert second["cluster"] == "first" and second["set.init_from"] == "first"
    assert second["loss_start_nats"] == pytest.approx(first["loss_report_final_nats"], abs=1e-6)
    StudyAudits().all_runs(study, out)
    assert verdicts(study, out) == ["exact", "exact"]
    # A folder that is moved as a whole is the same study.
    moved = Path(shutil.move(out, tmp_path / "b"))
    assert [reading.row["status"] for reading in study_readings(study, moved)] == ["done", "done"]
    assert [row.state for row in study_status(study, moved)] == ["done", "done"]
    # A parent of the same name elsewhere is another one.
    child, folder = build_graph(study, moved).by_name["second"].run, run_path(moved, "second")
    elsewhere = child.model_copy(update={"init_from": str(tmp_path / "c" / "first")})
    assert is_run_of(child, RunFolder.open(folder)) and not is_run_of(elsewhere, RunFolder.open(folder))
    # A run is no better than its parent.
    report = kept_report(run_path(moved, "first"))
    assert report is not None
    report.model_copy(update={"exact": False, "as_planned": False}).keep(run_path(moved, "first"))
    assert verdicts(study, moved) == ["not exact", "parent not exact"]


def verdicts(study: StudyConfig, out: Path) -> list[Any]:
    return [reading.row["audit_verdict"] for reading in study_readings(study, out)]
