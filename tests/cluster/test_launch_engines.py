"""Two ranks under torchrun and under mpirun are stopped with a checkpoint, resume, and are exact."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reptrain.config import RunConfig
from reptrain.config.load import dump_yaml
from reptrain.runs.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.mark.parametrize(("option", "program"), [("--torchrun", None), ("--mpi", "mpirun")])
def test_two_ranks_stop_resume_and_are_exact(
    tiny: Callable[..., RunConfig], tmp_path: Path, option: str, program: str | None
) -> None:
    if program is not None and shutil.which(program) is None:
        pytest.skip(f"{option} needs {program}: Debian's openmpi-bin")
    config = tiny("train.total_tokens=40epochs", "evaluate.max_windows=1")
    (tmp_path / "config.yaml").write_text(dump_yaml(config.model_dump(mode="json")))
    run = RunFolder(tmp_path / "run")
    # mpirun does not run as root by default.
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1"}
    environ["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    words = [sys.executable, "-m", "reptrain", "launch", "config.yaml", option, "--gpus", "2", "--out", "run"]
    for is_stopped in (True, False):
        training = subprocess.Popen(
            words, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        end = time.monotonic() + 200
        while is_stopped and sum(1 for _ in run.ledger.records()) < 5:
            assert training.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        if is_stopped:
            training.send_signal(signal.SIGTERM)
        output, _ = training.communicate(timeout=200)
        assert training.returncode == (3 if is_stopped else 0), output
        assert run.environment["world_size"] == 2
        assert run.status().state == ("preempted" if is_stopped else "done")
    audit = subprocess.run(
        [sys.executable, "-m", "reptrain", "audit", str(run.path), "--json"], capture_output=True, text=True
    )
    assert json.loads(audit.stdout)["exact"]
