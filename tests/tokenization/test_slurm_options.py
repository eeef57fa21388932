"""The options of `reptrain tokenize --slurm`."""

from __future__ import annotations

from pathlib import Path

import pytest

from reptrain.errors import StoreError
from reptrain.tokenization import slurm, tokenize
from reptrain.tokenization.slurm import SlurmJobs, SlurmWorkers


def test_slurm_options_are_parsed() -> None:
    parsed = SlurmJobs.parse(["time=1:00:00", "--array_parallelism=8", "partition=cpu", "exclusive"])
    others = {"partition": "cpu", "exclusive": True}
    assert (parsed.time, parsed.parallel, parsed.others) == ("1:00:00", 8, others)


@pytest.mark.parametrize(
    "options",
    [
        ["partition=cpu"],
        ["time=1", "array=1-3"],
        ["time=1", "a b"],
        ["time=1", "array-parallelism=x"],
        ["time"],
        ["time=1", "=x"],
        ["time="],
    ],
)
def test_wrong_slurm_options_are_refused(options: list[str]) -> None:
    with pytest.raises(StoreError, match="--slurm"):
        SlurmJobs.parse(options)


def test_tokenize_needs_slurms_commands(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreError, match="no sbatch, srun, squeue, scancel, scontrol on PATH"):
        tokenize([text_file], tmp_path / "store", slurm=["time=10"])


def test_a_job_that_was_killed_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    commands = {
        "sbatch": 'cp "$1" "$0.script"; echo Submitted batch job 7',
        "squeue": "exit 0",
        "scontrol": "echo JobId=7 JobState=OUT_OF_MEMORY",
        "scancel": 'echo "$@" >> "$0.jobs"',
        "srun": "exit 0",
    }
    for name, line in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("_POLL_S", "_QUEUE_S", "_VISIBLE_S"):
        monkeypatch.setattr(slurm, name, 0.05)
    workers = SlurmWorkers(tmp_path / "store", SlurmJobs.parse(["time=10", "exclusive"]))
    with pytest.raises(StoreError, match="must end with a result, but got state OUT_OF_MEMORY, no result"):
        list(workers.run(len, ["a", "b"]))
    assert "#SBATCH --exclusive\n" in (tmp_path / "sbatch.script").read_text()
    assert (tmp_path / "scancel.jobs").exists()
