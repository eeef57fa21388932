"""`reptrain launch --slurm` on a real two-node Slurm: preempted, stopped at its limit, done, and exact."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster

from reptrain.config import RunConfig
from reptrain.config.load import dump_yaml
from reptrain.runs.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.cluster, pytest.mark.timeout(500)]


def reptrain(*words: object) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "reptrain", *map(str, words)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def wait_for(cluster: SlurmCluster, condition: Callable[[], bool], limit_s: float = 240) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, cluster.call("squeue", "--format=%i %T %r")
        time.sleep(0.2)


@pytest.fixture
def configured(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], RunFolder]:
    """Writes config.yaml for a budget, in the working folder; returns the run folder to be."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)

    def write(budget: str) -> RunFolder:
        config = tiny(f"train.total_tokens={budget}", "evaluate.max_windows=1")
        Path("config.yaml").write_text(dump_yaml(config.model_dump(mode="json")))
        return RunFolder(Path("run"))

    return write


def test_a_job_is_preempted_reaches_its_limit_and_finishes(
    cluster: SlurmCluster, configured: Callable[[str], RunFolder]
) -> None:
    run = configured("150epochs")

    def wait_for_steps(more: int) -> None:
        aim = sum(1 for _ in run.ledger.records()) + more
        wait_for(cluster, lambda: sum(1 for _ in run.ledger.records()) >= aim)

    def stopped() -> bool:
        return run.status().state == "preempted" and "BeginTime" in cluster.call(
            "squeue", "--noheader", f"--jobs={number}", "--format=%r"
        )

    def start_again() -> None:
        # Slurm starts a requeued job after two minutes.
        cluster.call("scontrol", "update", f"jobid={number}", "starttime=now+3", "timelimit=30")
        wait_for(cluster, lambda: run.status().state == "running")

    options = ["--slurm", "time=30", "--slurm", "nodes=2", "--slurm", "signal-delay-s=60"]
    printed = reptrain("launch", "config.yaml", "--out", "run", *options)
    number = printed.split()[2].rstrip(":")
    wait_for_steps(10)
    assert run.environment["world_size"] == 2
    preempting = cluster.occupy()
    wait_for(cluster, stopped)
    cluster.call("scancel", preempting)
    start_again()
    wait_for_steps(10)
    # Less than signal-delay-s remains.
    cluster.call("scontrol", "update", f"jobid={number}", "timelimit=1")
    wait_for(cluster, stopped)
    start_again()
    wait_for(cluster, lambda: run.status().state == "done")
    wait_for(cluster, lambda: cluster.call("squeue", "--noheader", "--format=%i") == "")
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "preempted" for event in events) == 2, events
    # The file that counts stops without progress is removed at the end of the run.
    assert not Path("run.stops").exists()
    assert json.loads(reptrain("audit", "run", "--json"))["exact"]


def test_a_canceled_job_saves_a_checkpoint_and_is_not_started_again(
    cluster: SlurmCluster, configured: Callable[[str], RunFolder]
) -> None:
    run = configured("2000epochs")
    printed = reptrain("launch", "config.yaml", "--out", "run", "--slurm", "time=30")
    wait_for(cluster, lambda: sum(1 for _ in run.ledger.records()) > 5)
    cluster.call("scancel", printed.split()[2].rstrip(":"))
    wait_for(cluster, lambda: cluster.call("squeue", "--noheader", "--format=%i") == "")
    assert run.status().state == "preempted" and [*run.checkpoints.glob("step-*")]


def test_a_preemption_without_the_user_signal_requeues_too(
    plain_cluster: SlurmCluster, configured: Callable[[str], RunFolder]
) -> None:
    run = configured("2000epochs")
    printed = reptrain("launch", "config.yaml", "--out", "run", "--slurm", "time=30")
    number = printed.split()[2].rstrip(":")
    wait_for(plain_cluster, lambda: sum(1 for _ in run.ledger.records()) > 5)
    preempting = plain_cluster.occupy()
    queued = ("squeue", "--noheader", f"--jobs={number}", "--format=%T %r")
    wait_for(plain_cluster, lambda: plain_cluster.call(*queued) == "PENDING BeginTime")
    assert run.status().state == "preempted" and [*run.checkpoints.glob("step-*")]
    plain_cluster.call("scancel", preempting, number)
    wait_for(plain_cluster, lambda: plain_cluster.call("squeue", "--noheader", "--format=%i") == "")


def test_a_bare_srun_trains_to_the_end_and_is_exact(
    cluster: SlurmCluster, tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(tiny().model_dump(mode="json")))
    run = tmp_path / "run"
    cluster.call(
        "srun", "-N2", "-n2", sys.executable, "-m", "reptrain", "train", str(path), "--out", str(run)
    )
    assert RunFolder(run).environment["world_size"] == 2
    assert json.loads(reptrain("audit", run, "--json"))["exact"]
