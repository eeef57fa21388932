"""`reptrain tokenize --slurm` on a real two-node Slurm: the same bytes as on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster

from reptrain.errors import StoreError, TextError
from reptrain.tokenization import jobs as planned
from reptrain.tokenization import slurm, tokenize

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(600)]
OPTIONS = {"vocab_size": 512, "dedup": "minhash"}


@pytest.fixture(autouse=True)
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "_SMALLEST_JOB_BYTES", 1 << 16)
    monkeypatch.setattr(slurm, "_POLL_S", 0.3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_store_made_in_slurm_has_the_same_bytes(
    cluster: SlurmCluster, text_file: Path, tmp_path: Path
) -> None:
    local = tokenize([text_file], tmp_path / "local", **OPTIONS)
    made = tokenize([text_file], tmp_path / "slurm", slurm=["time=10"], **OPTIONS)
    assert made == local
    expected = contents(tmp_path / "local")
    assert sum(name.endswith(".arrow") for name in expected) > 4
    assert contents(tmp_path / "slurm") == expected
    # Nothing of Slurm's is left.
    assert {path.name for path in (tmp_path / "slurm").iterdir()} == expected.keys()


def test_an_error_in_a_job_arrives_whole_and_the_command_resumes(
    cluster: SlurmCluster, text_file: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(TextError, match=r"bad\.jsonl:2: must be JSON"):
        tokenize([bad], tmp_path / "store", slurm=["time=10"], vocab_size=300)
    bad.write_text(json.dumps({"text": "a"}) + "\n")
    with pytest.raises(StoreError, match="must be accepted by sbatch"):
        tokenize([text_file], tmp_path / "store", slurm=["time=10", "partition=none"], vocab_size=300)
    assert tokenize([text_file], tmp_path / "store", slurm=["time=10"], vocab_size=300).counts.kept > 0
