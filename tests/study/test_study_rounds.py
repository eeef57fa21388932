"""A study from its graph to its folder: tuning, commands on runs, changes, kills, and runs done elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from done_tables import write_table
from fake_trainer import CRASHES, FAILS, STUMBLES, WAITS
from in_process import InProcess
from run_folders import FakeStore, write_run
from time_limits import START_S

from reptrain.errors import StudyError
from reptrain.report import build_report
from reptrain.runs.folder import RunFolder
from reptrain.study import StudyConfig, collect, run_study, study_status
from reptrain.study.build import build_graph
from reptrain.study.local_pool import LocalPool
from reptrain.study.paths import config_path, questions_path, result_path, run_path
from reptrain.study.tuning import tuned_arms
from reptrain.study.write_tables import write_tables

TESTS = Path(__file__).parents[1]
TRAINER = [sys.executable, str(Path(__file__).with_name("fake_trainer.py"))]
# Stands in for `reptrain`: prints its arguments as JSON.
COMMAND = (sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))")
BASE: dict[str, Any] = {
    "data": {"store": "s", "unique_tokens": 4096, "window_tokens": 64},
    "train": {"total_tokens": 8192},
}


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptrain.study.preflight.open_store", lambda path, *, named_by: FakeStore())
    monkeypatch.setattr("reptrain.study.then._REPTRAIN", COMMAND)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


def study_of(**fields: Any) -> StudyConfig:
    return StudyConfig(**{"name": "s", "base": BASE, **fields})


def run(study: StudyConfig, out: Path, **options: Any) -> dict[str, str]:
    result = run_study(study, out, launch=TRAINER, **{"executor": InProcess(), **options})
    return {outcome.arm: outcome.state for outcome in result.outcomes}


def started(out: Path) -> list[str]:
    return (out / "started.txt").read_text().split()


def test_tuning_runs_come_first_and_settle_the_arms(tmp_path: Path) -> None:
    tune = {"axes": {"optimizer.lr": [1e-3, 2e-3, 4e-3]}, "seeds": [90]}
    study = study_of(seeds=[0, 1], tune=tune)
    states = run(study, tmp_path)
    assert set(states.values()) == {"done"} and len(states) == 5
    assert {name.split(".")[0] for name in started(tmp_path)[:3]} == {"tune"}
    assert "lr: 0.002" in config_path(tmp_path, "seed-0").read_text()
    assert set(run(study, tmp_path).values()) == {"skipped"}
    assert [row.state for row in study_status(study, tmp_path)] == ["done"] * 5


def test_tuning_extends_its_range_in_a_second_round(tmp_path: Path) -> None:
    tune = {"axes": {"optimizer.lr": [4e-3, 8e-3, 16e-3]}, "seeds": [90]}
    states = run(study_of(seeds=[0, 1], tune=tune), tmp_path)
    assert len(states) == 7 and set(states.values()) == {"done"}
    assert "lr: 0.002" in config_path(tmp_path, "seed-0").read_text()


def test_arms_take_the_rate_tuned_at_the_nearest_number_of_epochs(tmp_path: Path) -> None:
    """Runs of 8,192 tokens at 1 and 16 epochs; arms with another budget count their own epochs."""
    tune = {
        "axes": {"optimizer.lr": [1e-3, 2e-3, 4e-3]}, "seeds": [90], "set": {"train.total_tokens": 8192},
        "at": {"epochs": [1, 16]},
    }  # fmt: skip
    arms = [
        {"name": "once", "set": {"data.unique_tokens": 16384, "train.total_tokens": 16384}},
        {"name": "repeated", "set": {"data.unique_tokens": 2048, "train.total_tokens": 32768}},
    ]
    _, groups = tuned_arms(study_of(seeds=[0], arms=arms, tune=tune | {"per": ["model"]}), tmp_path)
    unique_tokens = {
        group.arms: [trial.config.data.unique_tokens for trial in group.trials] for group in groups
    }
    assert unique_tokens == {("once",): [8192] * 3, ("repeated",): [512] * 3}


def test_tuning_at_epochs_needs_a_budget_in_tokens(tmp_path: Path) -> None:
    tune = {"axes": {"optimizer.lr": [1e-3, 2e-3, 4e-3]}, "seeds": [90], "at": {"epochs": [1, 16]}}
    with pytest.raises(StudyError, match=r"tune\.at\.epochs.*2epochs"):
        build_graph(study_of(set={"train.total_tokens": "2epochs"}, tune=tune), tmp_path)


@pytest.mark.parametrize("value", [0, -1, "2", True, float("inf")])
def test_epochs_to_tune_at_are_positive_numbers(value: Any) -> None:
    tune = {"axes": {"optimizer.lr": [1e-3, 2e-3, 4e-3]}, "at": {"epochs": [value]}}
    with pytest.raises(ValueError, match=r"at\.epochs"):
        study_of(tune=tune)


def test_a_failed_tuning_run_blocks_its_arms(tmp_path: Path) -> None:
    tune = {"axes": {"optimizer.lr": [1e-3, 2e-3, 4e-3]}, "seeds": [FAILS]}
    states = run(study_of(seeds=[0, 1], tune=tune), tmp_path)
    assert sorted(states.values()) == ["blocked", "blocked", "failed", "failed", "failed"]


def test_commands_run_on_finished_runs_and_keep_their_results(tmp_path: Path) -> None:
    """With real processes."""
    then = [
        {"name": "scores", "do": "evaluate", "options": {"max-windows": 8, "set": ["report", "select"]}},
        {"name": "k", "do": "ensemble"},
    ]
    study = study_of(seeds=[0, FAILS], then=then)
    states = run(study, tmp_path, executor=LocalPool(2, poll_s=0.1))
    assert states == {
        "seed-0": "done", "seed-13": "failed", "scores.seed-0": "done", "scores.seed-13": "blocked",
        "k.base": "blocked",
    }  # fmt: skip
    kept = json.loads(result_path(tmp_path, "scores.seed-0").read_text())
    run_folder = str(run_path(tmp_path, "seed-0"))
    words = ["--max-windows", "8", "--set", "report", "--set", "select", "--json"]
    assert kept["output"] == ["evaluate", run_folder, *words]
    node = build_graph(study, tmp_path).by_name["scores.seed-0"]
    assert kept["fingerprint"] == node.fingerprint


def test_a_crash_is_tried_three_times_and_a_run_that_finished_is_done(tmp_path: Path) -> None:
    states = run(study_of(seeds=[CRASHES, STUMBLES]), tmp_path, executor=LocalPool(2, poll_s=0.1))
    assert states == {f"seed-{CRASHES}": "failed", f"seed-{STUMBLES}": "done"}
    assert started(tmp_path).count(f"seed-{CRASHES}") == 3


def test_a_study_that_is_killed_ends_its_children_and_resumes(tmp_path: Path) -> None:
    script = tmp_path / "study.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom run_folders import FakeStore\n"
        "import reptrain.study.preflight as preflight\n"
        "preflight.open_store = lambda path, *, named_by: FakeStore()\n"
        "from reptrain.study import StudyConfig, run_study\n"
        f"study = StudyConfig(name='s', base={BASE!r}, seeds=[{WAITS}])\n"
        f"run_study(study, Path({str(tmp_path / 'out')!r}), launch={TRAINER!r})\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(TESTS)})
    run_folder = run_path(tmp_path / "out", "base")
    deadline = time.monotonic() + START_S
    while not (run_folder / "status.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    while RunFolder.open(run_folder).status().state != "preempted" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert RunFolder.open(run_folder).status().state == "preempted"


def refused(study: StudyConfig, out: Path) -> str:
    with pytest.raises(StudyError) as caught:
        run(study, out)
    return str(caught.value)


def test_a_changed_study_is_refused_with_its_differences_and_a_new_name(tmp_path: Path) -> None:
    claim = {"name": "c", "statement": "s", "contrast": {"treatment": "a", "control": "b"}}
    arms = [{"name": "a"}, {"name": "b", "set": {"model.d_ff": 64}}]
    fields: dict[str, Any] = {"arms": arms, "seeds": [0, 1, 2, 3, 4], "claims": [claim]}
    run(study_of(**fields), tmp_path)
    before = (tmp_path / "study.yaml").read_bytes(), questions_path(tmp_path).read_bytes()
    changed = refused(study_of(**fields, set={"optimizer.lr": 2e-3}), tmp_path)
    assert "a.seed-0: optimizer.lr was 0.001, now 0.002" in changed and "name=s-2" in changed
    assert "and 5 more" in changed
    windows = refused(study_of(**fields, set={"evaluate.max_windows": 3}), tmp_path)
    assert "evaluate.max_windows was 64, now 3" in windows
    fewer = refused(study_of(**{**fields, "arms": arms[:1], "claims": []}), tmp_path)
    assert "b.seed-0: is no longer in the study" in fewer and "claims: c is gone" in fewer
    weaker = refused(study_of(**{**fields, "claims": [claim | {"minimum_effect": 0.5}]}), tmp_path)
    assert "c.minimum_effect was 0.0, now 0.5" in weaker
    assert before == ((tmp_path / "study.yaml").read_bytes(), questions_path(tmp_path).read_bytes())
    # More seeds and arms are no change.
    more = {**fields, "arms": [*arms, {"name": "c"}], "seeds": [*range(6)]}
    states = run(study_of(**more), tmp_path)
    assert sorted(set(states.values())) == ["done", "skipped"] and len(states) == 18


def test_runs_of_a_collected_table_count_as_done_unless_a_child_needs_their_checkpoint(
    tmp_path: Path,
) -> None:
    then = [{"name": "scores", "do": "evaluate", "where": {"arm": "b"}}]
    arms = [{"name": name, "set": {"model.d_ff": size}} for name, size in (("a", 64), ("b", 128), ("c", 256))]
    study = study_of(arms=arms, then=then)
    nodes = build_graph(study, tmp_path / "out").by_name
    table = write_table(tmp_path / "runs.parquet", [nodes["a"], nodes["b"]])
    states = run(study, tmp_path / "out", done=table)
    assert states == {"a": "skipped", "b": "done", "c": "done", "scores.b": "done"}
    assert sorted(started(tmp_path / "out")) == ["b", "c"]
    assert [row.state for row in study_status(study, tmp_path / "out")] == [
        "done elsewhere", "done", "done", "done",
    ]  # fmt: skip


def test_tables_have_the_rows_of_runs_that_are_done_elsewhere(tmp_path: Path) -> None:
    arms = [{"name": name, "set": {"model.d_ff": size}} for name, size in (("a", 64), ("b", 128))]
    base = BASE | {"model": {"vocab_size": 512}}
    other = study_of(name="other", base=base, arms=arms)
    for node in build_graph(other, tmp_path / "other").trainings:
        write_run(node.run, run_path(tmp_path / "other", node.name), exact=True)
    collected = write_tables(other, tmp_path / "other", tables=f"file://{tmp_path}/tables")
    assert collected.runs == str(tmp_path / "tables" / "runs.parquet")

    study = study_of(base=base, arms=[{"name": "mine", "set": {"model.d_ff": 64}}, arms[1]])
    states = run(study, tmp_path / "out", done=collected.runs)
    assert states == {"mine": "skipped", "b": "skipped"} and not (tmp_path / "out/started.txt").exists()
    written = write_tables(study, tmp_path / "out")
    mine, b = pyarrow.parquet.read_table(written.runs).to_pylist()
    assert (mine["study"], mine["run"], mine["arm"], mine["origin"]) == ("s", "mine", "mine", "other/a")
    assert (mine["status"], mine["audit_verdict"], mine["set.model.d_ff"]) == ("done", "exact", 64)
    assert b["origin"] == "other/b" and b["loss_report_final_nats"] == 7.4
    evaluations = pyarrow.parquet.read_table(written.evaluations).to_pylist()
    assert len(evaluations) == 18 and {one["run"] for one in evaluations} == {"mine", "b"}
    page = build_report(study, tmp_path / "out").read_text()
    assert "reptrain study run" in page and "reptrain audit" not in page
    # A copy of a copy keeps its origin, and reports show the run as done.
    third = study_of(name="third", base=base, arms=arms)
    run(third, tmp_path / "third", done=written.runs)
    copied = write_tables(third, tmp_path / "third")
    rows = pyarrow.parquet.read_table(copied.runs).to_pylist()
    assert [(row["study"], row["run"], row["origin"]) for row in rows] == [
        ("third", "a", "other/a"), ("third", "b", "other/b"),
    ]  # fmt: skip
    (row, _), direct = collect(third, tmp_path / "third"), collect(other, tmp_path / "other")[0]
    for name in (
        "state",
        "select",
        "report",
        "probe",
        "best_tokens",
        "best_report_nats",
        "gap_nats",
        "measure",
    ):
        assert getattr(row, name) == getattr(direct, name), name


@pytest.mark.parametrize("values", [{"status": "failed"}, {"audit_verdict": "not exact"}])
def test_runs_that_are_not_proven_do_not_count_as_done(tmp_path: Path, values: dict[str, str]) -> None:
    study = study_of()
    table = write_table(tmp_path / "runs.parquet", [*build_graph(study, tmp_path / "out").nodes], **values)
    assert run(study, tmp_path / "out", done=table) == {"base": "done"}


def test_tuning_reads_losses_of_a_collected_table(tmp_path: Path) -> None:
    study = study_of(tune={"axes": {"optimizer.lr": [1e-3, 2e-3, 4e-3]}, "seeds": [90]})
    trials = [node for node in build_graph(study, tmp_path / "out").nodes if node.role == "tune"]
    tables = [write_table(tmp_path / f"{n}.parquet", [trial], loss_select_best_nats=loss)
              for n, (trial, loss) in enumerate(zip(trials, (6.0, 5.0, 7.0), strict=True))]  # fmt: skip
    pyarrow.parquet.write_table(
        pa.concat_tables([pyarrow.parquet.read_table(table) for table in tables]), tmp_path / "all.parquet"
    )
    states = run(study, tmp_path / "out", done=tmp_path / "all.parquet")
    assert started(tmp_path / "out") == ["base"] and states["base"] == "done"
    assert "lr: 0.002" in config_path(tmp_path / "out", "base").read_text()


def test_another_file_is_no_table_of_done_runs(tmp_path: Path) -> None:
    (tmp_path / "runs.parquet").write_text("no table")
    with pytest.raises(StudyError, match=r"must be a runs.parquet"):
        run(study_of(), tmp_path / "out", done=tmp_path / "runs.parquet")
    assert not (tmp_path / "out").exists()
