"""A real study that is killed and resumed: its tables are those of an unbroken one, but for times."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from time_limits import START_S

from reptrain.runs.parent import read_parent

TIMED = ("seconds", "tokens_per_second", "usd", "reason")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def study_file(folder: Path, store: Path) -> Path:
    base = {
        "data": {"store": str(store), "unique_tokens": 5000, "window_tokens": 32},
        "model": {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64},
        "train": {"total_tokens": "4epochs", "batch_windows": 8, "device": "cpu"},
        "schedule": {"name": "constant", "warmup_fraction": 0},
        "evaluate": {"every_fraction": 0.25, "max_windows": 8},
        "checkpoint": {"every_fraction": 0.1},
    }
    late = {"model.dropout.residual": {"value": 0.1, "start": "50%"}}
    path = folder / "killed.yaml"
    then = [{"name": "scores", "do": "evaluate", "where": {"arm": "late"}, "options": {"set": ["select"]}}]
    adapted = {"init_from": "plain", "optimizer.lr": 1e-3}
    arms = [{"name": "plain"}, {"name": "late", "set": late}, {"name": "adapted", "set": adapted}]
    path.write_text(yaml.safe_dump({"base": base, "arms": arms, "then": then}))
    return path


def start(path: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "reptrain", "study", "run", str(path), "--out", str(out), "--jobs", "2"]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)


def tables(out: Path) -> list[list[dict[str, Any]]]:
    found = [
        pyarrow.parquet.read_table(out / "tables" / f"{name}.parquet") for name in ("runs", "evaluations")
    ]
    return [
        [{k: v for k, v in row.items() if not any(word in k for word in TIMED)} for row in table.to_pylist()]
        for table in found
    ]


def wait_for(path: Path, lines: int) -> None:
    deadline = time.monotonic() + 4 * START_S
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} has no {lines} lines")


def test_a_killed_study_resumes_to_the_tables_of_an_unbroken_one(store_path: Path, tmp_path: Path) -> None:
    path = study_file(tmp_path, store_path)
    out = tmp_path / "out"
    assert start(path, out).wait() == 0
    # At the same place, since a run's configuration has the path of its parent.
    unbroken = out.rename(tmp_path / "unbroken")
    # In the trunk, in a run that starts from its weights, and in the branch that begins with its 40 steps.
    for run, lines in (("plain", 20), ("adapted", 15), ("late", 55)):
        study = start(path, out)
        wait_for(out / "runs" / run / "ledger.jsonl", lines)
        os.kill(study.pid, signal.SIGKILL)
        study.wait()
    assert start(path, out).wait() == 0
    assert tables(out) == tables(unbroken)
    assert (out / "runs" / "late" / "branch.json").exists()
    weights = [read_parent(place / "runs" / "adapted") for place in (out, unbroken)]
    assert weights[0] is not None and weights[1] is not None and weights[0].weights == weights[1].weights
