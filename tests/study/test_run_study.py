"""Running a study: processes, skipping, failing, stopping. A small script stands in for training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import filelock
import pytest
from fake_trainer import FAILS, LIES, WAITS
from run_folders import FakeStore, write_run
from time_limits import START_S

from reptrain.cli.study_run import RunMeans, run_and_report
from reptrain.errors import PlanError, StudyError
from reptrain.runs.folder import RunFolder
from reptrain.study import StudyConfig, StudyEvent, arms, run_study, study_status
from reptrain.study.arm_progress import read_progress
from reptrain.study.local_pool import LocalPool
from reptrain.study.looks import Place
from reptrain.study.node_state import run_is_done
from reptrain.study.paths import config_path, log_path, run_path

TESTS = Path(__file__).parents[1]
TRAINER = [sys.executable, str(Path(__file__).with_name("fake_trainer.py"))]


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptrain.study.preflight.open_store", lambda path, *, named_by: FakeStore())
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


def study_of(*seeds: int, **settings: Any) -> StudyConfig:
    base = {
        "data": {"store": "s", "unique_tokens": 4096, "window_tokens": 64},
        "train": {"total_tokens": 8192},
    }
    return StudyConfig(name="s", base=base, set=settings, seeds=list(seeds))


def started(out: Path) -> list[str]:
    return (out / "started.txt").read_text().split()


def test_run_study_runs_each_arm_once_and_skips_it_afterwards(tmp_path: Path) -> None:
    study, events = study_of(0, 1), []
    result = run_study(study, tmp_path, launch=TRAINER, on_event=events.append, executor=LocalPool(1))
    assert [outcome.state for outcome in result.outcomes] == ["done", "done"]
    assert result.exit_code == 0
    assert [event.kind for event in events if event.kind != "progress"] == ["start", "done", "start", "done"]
    assert {(e.total_tokens, e.num_arms) for e in events} == {(8192, 2)}
    assert (events[-1].index, events[-1].tokens) == (1, 8192)

    again = run_study(study, tmp_path, launch=TRAINER)
    assert [outcome.state for outcome in again.outcomes] == ["skipped", "skipped"]
    assert started(tmp_path) == ["seed-0", "seed-1"]


def test_run_study_reports_a_failed_arm_and_goes_on(tmp_path: Path) -> None:
    result = run_study(study_of(FAILS, 0), tmp_path, launch=TRAINER)
    assert [outcome.state for outcome in result.outcomes] == ["failed", "done"]
    assert "exit code 2: train.lr: must be nice, but got this." in result.failed[0].reason
    assert result.exit_code == 1


def test_run_study_believes_the_run_folder_and_not_the_exit_code(tmp_path: Path) -> None:
    result = run_study(study_of(LIES), tmp_path, launch=TRAINER)
    assert "its run is not done" in result.failed[0].reason


def test_run_study_writes_the_resolved_configuration_and_the_output(tmp_path: Path) -> None:
    study = study_of(FAILS)
    run_study(study, tmp_path, launch=TRAINER)
    assert "seed: 13" in config_path(tmp_path, "base").read_text()
    assert "must be nice" in log_path(tmp_path, "base").read_text()


def test_run_study_passes_a_signal_on_and_leaves_the_rest_for_later(tmp_path: Path) -> None:
    def stop(event: StudyEvent) -> None:
        if event.kind == "progress" and event.tokens:
            os.kill(os.getpid(), signal.SIGTERM)

    study = study_of(WAITS, 0)
    result = run_study(study, tmp_path, launch=TRAINER, on_event=stop, executor=LocalPool(1))
    assert [outcome.state for outcome in result.outcomes] == ["stopped", "waiting"]
    assert result.exit_code == 3
    assert RunFolder.open(run_path(tmp_path, "seed-17")).status().state == "preempted"
    assert [row.state for row in study_status(study, tmp_path)] == ["preempted", "waiting"]


def test_run_and_report_writes_no_report_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(event: StudyEvent) -> None:
        if event.arm == "seed-17" and event.tokens:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("reptrain.cli.study_run.study_display", lambda: nullcontext(stop))
    means = RunMeans(LocalPool(1), TRAINER, 1, 1)
    assert run_and_report([Place(study_of(0, WAITS), tmp_path)], [means]) == 3
    assert RunFolder.open(run_path(tmp_path, "seed-0")).status().state == "done"
    assert "no report" in capsys.readouterr().err and not (tmp_path / "report.html").exists()


def test_run_study_leaves_no_process_behind_when_its_listener_fails(tmp_path: Path) -> None:
    def fail(event: StudyEvent) -> None:
        if event.kind == "progress" and event.tokens:
            raise RuntimeError("the terminal is gone")

    with pytest.raises(RuntimeError, match="the terminal is gone"):
        run_study(study_of(WAITS), tmp_path, launch=TRAINER, on_event=fail)
    pid = RunFolder.open(run_path(tmp_path, "base")).status().pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_run_study_checks_all_arms_before_the_first_starts(tmp_path: Path) -> None:
    study = StudyConfig(name="s", base=study_of().base, axes={"data.unique_tokens": [4096, 2**21]})
    with pytest.raises(StudyError, match=r"unique_tokens-2097152.*at most the 1048576 training tokens"):
        run_study(study, tmp_path / "out", launch=TRAINER)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"unique_tokens": 2**21}, r"arm base: data\.sources\.b\.unique_tokens.*at most the 1048576"),
        ({"unique_tokens": 20}, r"arm base: source b: data\.window_tokens.*subset of 20"),
    ],
)
def test_run_study_names_the_source_that_cannot_be_planned(
    tmp_path: Path, source: dict[str, Any], message: str
) -> None:
    sources = {"a": {"store": "s", "unique_tokens": 4096}, "b": {"store": "s", **source}}
    study = StudyConfig(name="s", base={"data": {"sources": sources}})
    with pytest.raises(StudyError, match=message):
        run_study(study, tmp_path, launch=TRAINER)


def test_run_study_runs_a_mixture_and_skips_it_afterwards(tmp_path: Path) -> None:
    sources = {
        "a": {"store": "s", "unique_tokens": 4096, "total_tokens": "2epochs"},
        "b": {"store": "t", "unique_tokens": 1024},
    }
    study, events = StudyConfig(name="s", base={"data": {"sources": sources}}), []
    result = run_study(study, tmp_path, launch=TRAINER, on_event=events.append)
    assert [outcome.state for outcome in result.outcomes] == ["done"]
    assert {event.total_tokens for event in events} == {2 * 4096 + 1024}
    assert run_study(study, tmp_path, launch=TRAINER).outcomes[0].state == "skipped"


def test_run_study_names_the_arm_that_cannot_be_planned(tmp_path: Path) -> None:
    study = StudyConfig(name="s", base=study_of().base, axes={"data.window_tokens": [64, 8192]})
    with pytest.raises(StudyError, match=r"arm window_tokens-8192: data.window_tokens") as caught:
        run_study(study, tmp_path, launch=TRAINER)
    assert isinstance(caught.value.__cause__, PlanError)


def test_run_study_is_refused_while_another_runs(tmp_path: Path) -> None:
    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(StudyError, match="one `study run` at a time"):
        run_study(study_of(0), tmp_path, launch=TRAINER)


def test_is_done_only_for_the_same_mathematics_on_the_same_store(tmp_path: Path) -> None:
    arm = arms(study_of(0))[0]
    assert not run_is_done(arm.config, tmp_path / "none", {"s": FakeStore()})
    write_run(arm.config, tmp_path / "run")
    assert run_is_done(arm.config, tmp_path / "run", {"s": FakeStore()})
    other = FakeStore()
    other.fingerprint = "6" * 32
    assert not run_is_done(arm.config, tmp_path / "run", {"s": other})
    assert not run_is_done(arms(study_of(1))[0].config, tmp_path / "run", {"s": FakeStore()})
    write_run(arm.config, tmp_path / "broken", state="failed")
    assert not run_is_done(arm.config, tmp_path / "broken", {"s": FakeStore()})


def test_read_progress_ignores_a_line_that_is_still_being_written(tmp_path: Path) -> None:
    assert read_progress(tmp_path) == (0, None)
    write_run(arms(study_of(0))[0].config, tmp_path)
    assert read_progress(tmp_path) == (8192, 1200.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind":"train","tokens":9')
    assert read_progress(tmp_path) == (8192, 1200.0)


def test_read_progress_reads_the_tail_of_a_long_file(tmp_path: Path) -> None:
    line = '{"kind":"train","tokens":%d,"tokens_per_s":2.0}\n'
    (tmp_path / "metrics.jsonl").write_text("".join(line % tokens for tokens in range(2000)))
    assert read_progress(tmp_path) == (1999, 2.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.writelines(['{"kind":"valid","tokens":9}\n'] * 1000)
    assert read_progress(tmp_path) == (0, None)


def test_study_imports_no_torch() -> None:
    code = "import sys, reptrain.study, reptrain.report, reptrain_launcher; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=START_S).returncode == 0
