"""Jobs as processes on this machine: how many at once, in which order, and how they end."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from time_limits import START_S

from reptrain.study.executor import MOST_TRIES, Job, JobOutcome, Judge, Listener
from reptrain.study.local_pool import LocalPool
from reptrain_launcher.worker import WorkerJob


def job(folder: Path, name: str, code: str = "", **order: tuple[str, ...]) -> Job:
    return Job(name, (sys.executable, "-c", code), folder / f"{name}.log", **order)


def by_exit_code(retries: bool = False) -> Judge:
    def judge(job: Job, ended: object, tries: int) -> JobOutcome:
        code = ended.returncode  # type: ignore[attr-defined]
        if code == 0:
            return JobOutcome("done")
        return JobOutcome("retry" if retries and tries < MOST_TRIES else "failed", f"exit code {code}")

    return judge


def test_execute_runs_several_at_once_with_their_share_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    # Each waits for the other, so they end only if both run at once.
    code = (
        "import os, pathlib, time; me, other = {names};"
        "pathlib.Path(me).write_text(os.environ['OMP_NUM_THREADS'])\n"
        "while not pathlib.Path(other).exists(): time.sleep(0.01)"
    )
    names = [str(tmp_path / name) for name in ("a", "b")]
    jobs = [
        job(tmp_path, "first", code.format(names=tuple(names))),
        job(tmp_path, "second", code.format(names=tuple(reversed(names)))),
    ]
    ends = LocalPool(2).execute(jobs, by_exit_code(), Listener())
    assert [end.state for end in ends.values()] == ["done", "done"]
    assert [Path(name).read_text() for name in names] == ["4", "4"]


def test_execute_waits_for_inputs_and_starts_first_what_others_need(tmp_path: Path) -> None:
    started: list[str] = []
    jobs = [
        job(tmp_path, "last", after=("input",)),
        job(tmp_path, "free"),
        job(tmp_path, "input"),
        job(tmp_path, "broken", "import sys; sys.exit(1)"),
        job(tmp_path, "blocked", after=("broken",)),
        job(tmp_path, "follower", follows=("broken",)),
    ]
    ends = LocalPool(1, poll_s=0.1).execute(jobs, by_exit_code(), Listener(started=started.append))
    assert started.index("input") < started.index("free") and started.index("input") < started.index("last")
    assert {name: end.state for name, end in ends.items()} == {
        "last": "done", "free": "done", "input": "done", "broken": "failed", "blocked": "blocked",
        "follower": "done",
    }  # fmt: skip
    assert "broken is not done" in ends["blocked"].message and "blocked" not in started


def test_execute_starts_a_failed_job_again_at_most_twice(tmp_path: Path) -> None:
    started: list[str] = []
    jobs = [job(tmp_path, "crashes", "import os; os.abort()")]
    ends = LocalPool(2).execute(jobs, by_exit_code(retries=True), Listener(started=started.append))
    assert ends["crashes"].state == "failed" and started == ["crashes"] * 3


def worker(folder: Path, name: str, code: str, **fields: object) -> Path:
    path = folder / f"{name}.json"
    spec = WorkerJob([sys.executable, "-c", code], str(folder / f"{name}.lock"), **fields)  # type: ignore[arg-type]
    path.write_text(spec.text())
    return path


def run_worker(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "reptrain_launcher.worker", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S)


def test_worker_keeps_the_result_of_a_command_that_ends_well(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    fields = {"result": str(result), "record": {"fingerprint": "f"}}
    assert run_worker(worker(tmp_path, "good", "print('[1, 2]')", **fields)).returncode == 0
    assert json.loads(result.read_text()) == {"fingerprint": "f", "output": [1, 2]}
    result.unlink()
    failed = run_worker(worker(tmp_path, "bad", "import sys; print('[1]'); sys.exit(2)", **fields))
    assert failed.returncode == 2 and not result.exists()
    no_json = run_worker(worker(tmp_path, "text", "print('[1, ')", **fields))
    assert no_json.returncode == 1 and "no JSON" in no_json.stderr and not result.exists()


def test_worker_refuses_a_job_that_another_process_runs(tmp_path: Path) -> None:
    path = worker(tmp_path, "taken", "raise SystemExit(0)", wait_s=0.3)
    with (tmp_path / "taken.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused = run_worker(path)
    assert refused.returncode == 1 and "still locked" in refused.stderr
    assert run_worker(path).returncode == 0


def test_worker_leaves_its_lock_to_the_command(tmp_path: Path) -> None:
    code = f"import fcntl; fcntl.flock(open({str(tmp_path / 'own.lock')!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    assert "BlockingIOError" in run_worker(worker(tmp_path, "own", code)).stderr


def test_children_end_with_a_study_that_is_killed(tmp_path: Path) -> None:
    """`kill -9` of the parent: its child gets SIGTERM, and the next start of the job waits until it ended."""
    noted = tmp_path / "noted"
    code = (
        "import pathlib, signal, time\n"
        f"noted = pathlib.Path({str(noted)!r})\n"
        "def stop(*_):\n"
        "    time.sleep(0.5); noted.write_text('saved'); raise SystemExit(3)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "noted.write_text('running')\n"
        "while True: time.sleep(0.05)\n"
    )
    parent_code = (
        "import os, subprocess, sys, time, json, pathlib\n"
        f"path = pathlib.Path({str(tmp_path / 'child.json')!r})\n"
        "job = json.loads(path.read_text()); job['parent'] = os.getpid(); path.write_text(json.dumps(job))\n"
        "subprocess.Popen([sys.executable, '-m', 'reptrain_launcher.worker', path], start_new_session=True)\n"
        "time.sleep(1000)\n"
    )
    worker(tmp_path, "child", code)
    parent = subprocess.Popen([sys.executable, "-c", parent_code])
    deadline = time.monotonic() + START_S
    while not noted.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    again = worker(tmp_path, "again", f"print(open({str(noted)!r}).read())")
    spec = json.loads(again.read_text())
    again.write_text(json.dumps({**spec, "lock": str(tmp_path / "child.lock"), "wait_s": START_S}))
    assert run_worker(again).stdout == "saved\n"
