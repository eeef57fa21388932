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


def test_a_job_is_preempted_reaches_its_limit_and_finishes(
    cluster: SlurmCluster,
    tiny: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    config = tiny("train.total_tokens=2000epochs", "evaluate.max_windows=1")
    Path("config.yaml").write_text(dump_yaml(config.model_dump(mode="json")))
    run = RunFolder(Path("run"))

    def steps() -> int:
        return sum(1 for _ in run.ledger.records())

    def start_again() -> None:
        # Slurm lets a requeued job wait for two minutes, and refuses another time in its first seconds.
        wait_for(
            cluster,
            lambda: "BeginTime" in cluster.call("squeue", "--noheader", f"--jobs={number}", "--format=%r"),
        )
        cluster.call("scontrol", "update", f"jobid={number}", "starttime=now+3")

    # Stopped 60 seconds before its limit of two minutes.
    options = ["--slurm", "time=2", "--slurm", "nodes=2", "--slurm", "signal-delay-s=60"]
    printed = reptrain("launch", "config.yaml", "--out", "run", *options)
    assert "run.launch.sh" in printed
    number = printed.split()[2].rstrip(":")
    wait_for(cluster, lambda: steps() > 10)
    assert run.environment["world_size"] == 2
    preempting = cluster.occupy()
    wait_for(cluster, lambda: run.status().state == "preempted")
    wait_for(cluster, lambda: preempting in cluster.call("squeue", "--noheader", "-t", "R", "--format=%i"))
    cluster.call("scancel", preempting)
    start_again()
    wait_for(cluster, lambda: run.status().state == "running")
    # Now the signal before the time limit.
    wait_for(cluster, lambda: run.status().state == "preempted")
    text = Path("run.launch.sh").read_text()
    assert "--signal=USR1@60" in text
    start_again()
    wait_for(cluster, lambda: run.status().state == "running")
    before = steps()
    wait_for(cluster, lambda: steps() > before)
    # A canceled job is not started again.
    cluster.call("scancel", number)
    wait_for(cluster, lambda: cluster.call("squeue", "--noheader", "--format=%i") == "")
    events = [json.loads(line)["event"] for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert events.count("preempted") >= 2 and events.count("resumed") >= 2
    stops = Path("run.stops").read_text().split()
    assert stops[0] == "1" and stops[1].startswith("step-")


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
    assert json.loads(reptrain("audit", run, "--json"))["verdict"] == "exact"
