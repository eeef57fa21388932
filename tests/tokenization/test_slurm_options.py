"""The options of `reptrain tokenize --slurm`."""

from __future__ import annotations

from pathlib import Path

import pytest

from reptrain.errors import StoreError
from reptrain.tokenization import tokenize
from reptrain.tokenization.slurm import SlurmJobs


def test_slurm_options_are_parsed() -> None:
    parsed = SlurmJobs.parse(["time=1:00:00", "--array_parallelism=8", "partition=cpu"])
    assert (parsed.time, parsed.parallel, parsed.others) == ("1:00:00", 8, {"partition": "cpu"})


@pytest.mark.parametrize(
    "options",
    [["partition=cpu"], ["time=1", "array=1-3"], ["time=1", "a b"], ["time=1", "array-parallelism=x"]],
)
def test_wrong_slurm_options_are_refused(options: list[str]) -> None:
    with pytest.raises(StoreError, match="--slurm"):
        SlurmJobs.parse(options)


def test_tokenize_needs_slurms_commands(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreError, match="no sbatch, squeue, scancel, scontrol on PATH"):
        tokenize([text_file], tmp_path / "store", slurm=["time=10"])
