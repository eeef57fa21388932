"""The commands of torchrun and mpirun, and the batch script of Slurm."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from reptrain.errors import LaunchError
from reptrain_launcher.engines import mpi_command, torchrun_command
from reptrain_launcher.slurm_script import SlurmJob, slurm_script

TRAIN = ["train", "a config.yaml", "seed=1"]
HOSTS = {"a": 8, "b": 4}


def test_torchrun_starts_the_slots_of_its_host() -> None:
    command = torchrun_command(TRAIN, hosts=HOSTS, gpus=None, node_rank=1)
    assert {"--nnodes=2", "--node-rank=1", "--nproc-per-node=4", "--master-addr=a"} <= {*command}
    assert command[-5:] == ["-m", "reptrain", *TRAIN]
    for node_rank in (None, 2):
        with pytest.raises(LaunchError, match="--node-rank: must be from 0 to 1"):
            torchrun_command(TRAIN, hosts=HOSTS, gpus=None, node_rank=node_rank)
    assert "--nproc-per-node=3" in torchrun_command(TRAIN, hosts=None, gpus=3)


def test_mpirun_forwards_variables_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    hostfile = tmp_path / "hosts"
    hostfile.write_text("a slots=8\nb slots=4\n")
    command = mpi_command(
        TRAIN, hostfile=hostfile, hosts=HOSTS, gpus=None, variables={"HF_TOKEN": "secret", "OMP_X": "1"}
    )
    assert command[:3] == ["mpirun", "-np", "12"] and str(hostfile) in command
    forwarded = [command[place + 1] for place, word in enumerate(command) if word == "-x"]
    assert forwarded == ["MASTER_ADDR=a", "MASTER_PORT=29500", "HF_TOKEN", "OMP_X"]


def script(*options: str, run: str = "runs/x", train: list[str] = TRAIN) -> str:
    job = SlurmJob.parse(["time=4:00:00", *options])
    return slurm_script(job, train, run=Path(run), folder=Path("/a b"), variables={"A": "1 $2"})


def test_a_batch_script_requeues_itself_and_is_signaled_before_its_limit() -> None:
    text = script("nodes=2", "gpus-per-node=8", "signal-delay-s=300", "partition=gpu", "exclusive")
    directives = {line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line}
    assert {
        "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=4:00:00", "--partition=gpu",
        "--exclusive", "--requeue", "--open-mode=append", "--signal=USR1@300",
    } <= directives  # fmt: skip
    assert "export A='1 $2'" in text and "cd '/a b'" in text and "'a config.yaml'" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_the_tasks_of_an_array_have_run_folders_of_their_own() -> None:
    with pytest.raises(LaunchError, match="--out: must contain %a in an array"):
        script("array=0-3")
    text = script("array=0-3", run="runs/seed-%a", train=["train", "c", "seed=%a", "--out", "runs/seed-%a"])
    assert "#SBATCH --array=0-3" in text and "--output=runs/seed-%a.slurm-%A_%a.log" in text
    assert 'seed="$SLURM_ARRAY_TASK_ID" --out runs/seed-"$SLURM_ARRAY_TASK_ID"' in text.replace(
        'seed="$', 'seed="$'
    )
    assert 'run=runs/seed-"$SLURM_ARRAY_TASK_ID"' in text


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ([], "must give the time limit"),
        (["time=1", "requeue"], "must leave this option to the launcher"),
        (["time=1", "Nodes=2"], "must be KEY=VALUE"),
        (["time=1", "nodes=0"], "must be a positive integer"),
        (["time="], "must give the time limit"),
    ],
)
def test_wrong_slurm_options_are_refused(options: list[str], error: str) -> None:
    with pytest.raises(LaunchError, match=error):
        SlurmJob.parse(options)
