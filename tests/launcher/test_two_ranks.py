"""Two ranks under the deepspeed launcher are stopped by a signal and resume."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import training_server
from forked_python import ONLY_CHILDREN
from time_limits import START_S

from reptrain.config import RunConfig
from reptrain.config.load import dump_yaml
from reptrain.runs.folder import RunFolder
from reptrain_launcher import launch_command, launch_environment, run_launch


@pytest.mark.ranks
@pytest.mark.timeout(4 * START_S)
def test_run_launch_stops_two_ranks_with_a_checkpoint(
    tiny: Callable[..., RunConfig],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The launcher is an interpreter, its ranks are forks.
    monkeypatch.setattr(sys, "executable", str(training_server().python))
    monkeypatch.setenv(ONLY_CHILDREN, "1")
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    settings = tiny("train.total_tokens=4000epochs", "train.zero_stage=1", "evaluate.max_windows=1")
    config.write_text(dump_yaml(settings.model_dump(mode="json")))

    def stop_after_some_steps() -> None:
        while sum(1 for _ in RunFolder(run).ledger.records()) < 5:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_after_some_steps, daemon=True).start()
    command = launch_command(config, gpus=2, device="cpu", out=run, overrides=["seed=3"])
    assert run_launch(command, launch_environment(gpus=2, device="cpu")).code == 3
    printed = "".join(capfd.readouterr())
    assert "preempted (SIGTERM)" in printed and "resumes" in printed
    assert "error" not in printed.lower() and "FutureWarning" not in printed, printed
    folder = RunFolder.open(run)
    assert folder.config.seed == 3
    assert folder.status().state == "preempted"
    assert folder.environment["world_size"] == 2
    assert [*folder.checkpoints.glob("step-*")]
