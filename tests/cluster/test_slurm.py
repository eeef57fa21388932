"""Jobs on a real two-node Slurm: arrays, dependencies, preemption, stops, and a study process that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster

from reptrain.study.executor import Job, JobOutcome, Listener
from reptrain.study.slurm import SlurmExecutor
from reptrain.study.slurm_options import SlurmOptions
from reptrain_launcher.process import Ended
from reptrain_launcher.squeue import final_state, read_queue
from reptrain_launcher.worker import WorkerJob

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(600)]
STEPPING = [sys.executable, str(Path(__file__).with_name("stepping_job.py"))]


def job(folder: Path, name: str, steps: int, *, code: int = 0, **before: tuple[str, ...]) -> Job:
    """A job that counts steps in ``folder/name``."""
    room = folder / name
    room.mkdir(parents=True, exist_ok=True)
    worker = WorkerJob([*STEPPING, str(room), str(steps), str(code)], str(room / "lock"), wait_s=5)
    (room / "job.json").write_text(worker.text())
    return Job(
        name,
        (sys.executable, "-m", "reptrain_launcher.worker", str(room / "job.json")),
        room / "log",
        checkpoint=room / "checkpoints" / "latest",
        **before,
    )


def judge(one: Job, ended: Ended, tries: int) -> JobOutcome:
    """As the study does: believe the exit code, retry once."""
    if ended.returncode == 0:
        return JobOutcome("done")
    if ended.returncode == 3:
        return JobOutcome("stopped")
    return JobOutcome("retry" if tries < 2 else "failed", f"exit code {ended.returncode}")


def executor(folder: Path, *options: str) -> SlurmExecutor:
    parsed = SlurmOptions.parse(["time=10", *options])
    return SlurmExecutor(folder / "slurm", parsed, name="s", poll_s=0.3)


def starts(folder: Path, name: str) -> list[list[str]]:
    """Step and rank variables of every start of a job."""
    return [line.split() for line in (folder / name / "starts.txt").read_text().splitlines()]


def wait_for(condition: Callable[[], object], limit_s: float = 200) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def empty_queue(request: pytest.FixtureRequest) -> Iterator[None]:
    """No job outlives its test."""
    # First, so that the queue is that of the test's cluster.
    request.getfixturevalue("plain_cluster" if "plain_cluster" in request.fixturenames else "cluster")
    yield
    for number in read_queue() or {}:
        subprocess.run(["scancel", "--quiet", "--full", "-s", "KILL", number])
        subprocess.run(["scancel", "--quiet", number])
    wait_for(lambda: read_queue() == {}, 60)


def test_levels_are_arrays_that_wait_for_each_other(cluster: SlurmCluster, tmp_path: Path) -> None:
    jobs = [
        *(job(tmp_path, f"prefix{n}", 2) for n in range(2)),
        *(job(tmp_path, f"branch{n}{m}", 1, follows=(f"prefix{n}",)) for n in range(2) for m in range(2)),
        job(tmp_path, "mean", 1, after=("branch00", "branch11")),
    ]
    ends = executor(tmp_path).execute(jobs, judge, Listener())
    assert {end.state for end in ends.values()} == {"done"} and list(ends) == [one.name for one in jobs]
    scripts = [path.read_text() for path in sorted((tmp_path / "slurm").glob("*_submission.sh"))]
    assert len(scripts) == 4
    assert sum("--array=0-1" in script for script in scripts) == 3
    assert sum("--dependency=aftercorr:" in script for script in scripts) == 2
    assert sum("--dependency=afterok:" in script for script in scripts) == 1
    # Each ran once: Slurm resolved the dependencies.
    assert all(len(starts(tmp_path, one.name)) == 1 for one in jobs)


def test_failures_are_retried_and_block_what_needs_them(cluster: SlurmCluster, tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "bad", 1, code=7),
        job(tmp_path, "good", 1),
        job(tmp_path, "branch", 1, follows=("bad",)),
        job(tmp_path, "needs", 1, after=("bad",)),
        job(tmp_path, "fine", 1, after=("good",)),
    ]
    heard: list[str] = []
    listener = Listener(ended=lambda name, end: heard.append(f"{name} {end.state}"))
    ends = executor(tmp_path).execute(jobs, judge, listener)
    states = {name: end.state for name, end in ends.items()}
    assert states == {
        "bad": "failed", "good": "done", "branch": "done", "needs": "blocked", "fine": "done"
    }  # fmt: skip
    assert ends["bad"].message == "exit code 7" and len(starts(tmp_path, "bad")) == 2
    assert sorted(heard) == sorted(f"{name} {state}" for name, state in states.items())


def start_now(cluster: SlurmCluster) -> None:
    """Let the requeued job start soon: Slurm makes it wait for two minutes, and refuses it for a second."""
    wait_for(lambda: [job.reason for job in (read_queue() or {}).values()] == ["BeginTime"])
    (number,) = read_queue() or {}
    cluster.call("scontrol", "update", f"jobid={number}", "starttime=now+3")


def preempt(cluster: SlurmCluster, room: Path, *, is_requeued: bool) -> threading.Thread:
    """Preempt the running job once, and let it go on: requeued by itself, or submitted again."""

    def run() -> None:
        wait_for(lambda: (room / "starts.txt").exists())
        time.sleep(1)
        number = cluster.occupy()
        wait_for(lambda: (room / "checkpoints" / "latest").exists())
        cluster.call("scancel", number)
        if is_requeued:
            wait_for(lambda: number not in (read_queue() or {number}))
            start_now(cluster)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_preempted_job_resumes_from_its_checkpoint(cluster: SlurmCluster, tmp_path: Path) -> None:
    thread = preempt(cluster, tmp_path / "one", is_requeued=True)
    ends = executor(tmp_path).execute([job(tmp_path, "one", 40)], judge, Listener())
    thread.join()
    assert ends["one"].state == "done"
    first, second = starts(tmp_path, "one")
    assert first[0] == "0" and 0 < int(second[0]) < 40
    # submitit requeued the same job.
    assert len([*(tmp_path / "slurm").glob("*_submission.sh")]) == 1


def test_preemption_by_sigterm_alone_saves_a_checkpoint_too(
    plain_cluster: SlurmCluster, tmp_path: Path
) -> None:
    thread = preempt(plain_cluster, tmp_path / "one", is_requeued=False)
    ends = executor(tmp_path).execute([job(tmp_path, "one", 40)], judge, Listener())
    thread.join()
    assert ends["one"].state == "done"
    assert 0 < int(starts(tmp_path, "one")[1][0]) < 40


def test_time_limits_do_not_end_a_job_that_makes_progress(cluster: SlurmCluster, tmp_path: Path) -> None:
    # submitit takes every signal in a job of less than ten minutes for a time-out, and allows three.
    one = job(tmp_path, "one", 10_000)

    def run() -> None:
        for count in range(5):
            wait_for(lambda: (tmp_path / "one" / "starts.txt").exists())
            wait_for(lambda: len(starts(tmp_path, "one")) == count + 1)  # noqa: B023
            time.sleep(0.6)
            (number,) = read_queue() or {}
            cluster.call("scancel", "--signal=USR2", number)
            start_now(cluster)
        wait_for(lambda: len(starts(tmp_path, "one")) == 6)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=run)
    thread.start()
    ends = executor(tmp_path).execute([one], judge, Listener())
    thread.join()
    assert ends["one"].state == "stopped"
    steps = [int(start[0]) for start in starts(tmp_path, "one")]
    assert len(steps) == 6 and steps == sorted(set(steps))


def test_a_signal_stops_running_jobs_with_checkpoints_and_cancels_the_rest(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    jobs = [job(tmp_path, "long", 10_000), job(tmp_path, "later", 1, after=("long",))]

    def stop(name: str, seconds: float) -> None:
        if seconds > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    ends = executor(tmp_path).execute(jobs, judge, Listener(running=stop))
    assert (ends["long"].state, ends["later"].state) == ("stopped", "waiting")
    assert (tmp_path / "long" / "checkpoints" / "latest").read_text() != "step-0"
    assert not (tmp_path / "later" / "starts.txt").exists() and read_queue() == {}


def test_a_job_cancelled_by_its_user_is_not_submitted_again(cluster: SlurmCluster, tmp_path: Path) -> None:
    def cancel(name: str, seconds: float) -> None:
        if (tmp_path / "one" / "starts.txt").exists():
            subprocess.run(["scancel", *(read_queue() or {})])

    ends = executor(tmp_path).execute([job(tmp_path, "one", 10_000)], judge, Listener(running=cancel))
    assert ends["one"].state == "stopped" and "cancelled in Slurm" in ends["one"].message
    assert len(starts(tmp_path, "one")) == 1


_STUDY = """
import sys
sys.path[:0] = [{tests!r}, {here!r}]
from pathlib import Path
from test_slurm import *
executor(Path({folder!r})).execute([job(Path({folder!r}), "one", 40)], judge, Listener())
"""


def test_jobs_of_a_killed_study_process_are_adopted(
    cluster: SlurmCluster, tmp_path: Path, tests_on_path: Path
) -> None:
    code = _STUDY.format(tests=str(tests_on_path), here=str(Path(__file__).parent), folder=str(tmp_path))
    study = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: (tmp_path / "one" / "starts.txt").exists())
    study.kill()
    study.wait()
    ends = executor(tmp_path).execute([job(tmp_path, "one", 40)], judge, Listener())
    assert ends["one"].state == "done" and len(starts(tmp_path, "one")) == 1


def test_a_lost_terminal_leaves_the_jobs_in_the_queue(cluster: SlurmCluster, tmp_path: Path) -> None:
    def hang_up(name: str, seconds: float) -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    # Under nohup it is ignored, and stays so in an executor.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        ends = executor(tmp_path).execute([job(tmp_path, "one", 20)], judge, Listener(running=hang_up))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ends["one"].state == "waiting" and len(read_queue() or {}) == 1
    ends = executor(tmp_path).execute([job(tmp_path, "one", 20)], judge, Listener())
    assert ends["one"].state == "done" and len(starts(tmp_path, "one")) == 1


def test_ranks_on_two_nodes_know_each_other(cluster: SlurmCluster, tmp_path: Path) -> None:
    ends = executor(tmp_path, "nodes=2", "ntasks-per-node=2").execute(
        [job(tmp_path, "one", 2)], judge, Listener()
    )
    assert ends["one"].state == "done"
    ranks = sorted(start[1:] for start in starts(tmp_path, "one"))
    assert [rank[:2] for rank in ranks] == [[str(rank), "4"] for rank in range(4)]
    assert len({tuple(rank[2:]) for rank in ranks}) == 1


def test_final_state_of_an_unknown_job_is_unknown(cluster: SlurmCluster) -> None:
    assert final_state("999999") == "UNKNOWN"
