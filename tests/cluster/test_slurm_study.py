"""A study of real trainings on a two-node Slurm: preempted, its tables are those of a local one."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from slurm_cluster import SlurmCluster

from reptrain.config import RunConfig
from reptrain_launcher.squeue import read_queue

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(1500)]
NOT_COMPARED = {"tokens_per_second", "train_seconds", "wall_seconds", "cost_usd"}


@pytest.fixture
def study_file(tmp_path: Path, tiny: Callable[[], RunConfig]) -> Path:
    """Two lengths of one run under a constant rate: the shorter one branches from the longer."""
    base = tiny().model_dump(mode="json", exclude_unset=True)
    del base["name"], base["train"]["total_tokens"]
    base["schedule"] = {"name": "constant", "warmup_fraction": 0}
    study = {
        "name": "small", "base": base, "axes": {"train.total_tokens": ["2**15", "2**17"]}, "seeds": [0],
    }  # fmt: skip
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def command(study: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "reptrain", "study", "run", str(study), "--out", str(out), *options]


def wait_for_steps(run: Path, steps: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 600
    while not (run / "ledger.jsonl").exists() or (run / "ledger.jsonl").read_bytes().count(b"\n") < steps:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)


def equal(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return one == other


def test_a_preempted_study_has_the_tables_of_an_unbroken_one(
    cluster: SlurmCluster, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    there, here = tmp_path / "slurm", tmp_path / "local"
    study = subprocess.Popen(command(study_file, there, "--slurm", "time=30"))
    wait_for_steps(there / "runs" / "total_tokens-131072", 60, study)
    preempting = cluster.occupy()
    while not any(job.reason == "BeginTime" for job in (read_queue() or {}).values()):
        assert study.poll() is None
        time.sleep(0.1)
    cluster.call("scancel", preempting)
    for number, job in (read_queue() or {}).items():
        if job.reason == "BeginTime":
            cluster.call("scontrol", "update", f"jobid={number}", "starttime=now+3")
    assert study.wait() == 0
    events = (there / "runs" / "total_tokens-131072" / "events.jsonl").read_text()
    assert '"preempted"' in events and '"resumed"' in events
    # The shorter run branched from the longer one.
    assert '"branched"' in (there / "runs" / "total_tokens-32768" / "events.jsonl").read_text()

    assert subprocess.run(command(study_file, here, "--jobs", "1")).returncode == 0
    for table in ("runs", "evaluations"):
        rows, expected = (
            pq.read_table(out / "tables" / f"{table}.parquet").to_pylist() for out in (there, here)
        )
        assert len(rows) == len(expected) > 0
        for row, unbroken in zip(rows, expected, strict=True):
            different = {key for key in row if not equal(row[key], unbroken[key])}
            assert different <= NOT_COMPARED, {key: (row[key], unbroken[key]) for key in different}
            assert row.get("audit_verdict", "exact") == "exact"


def test_a_run_on_two_nodes_trains_and_is_exact(
    cluster: SlurmCluster, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["axes.train.total_tokens=[2**14]", "--slurm", "time=30", "--slurm", "nodes=2"]
    ended = subprocess.run(command(study_file, tmp_path / "two", *options), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (row,) = pq.read_table(tmp_path / "two" / "tables" / "runs.parquet").to_pylist()
    assert (row["status"], row["num_devices"], row["audit_verdict"]) == ("done", 2, "exact")
