"""Ranks of srun and mpirun join without another launcher."""

from __future__ import annotations

import pytest

from reptrain.errors import LaunchError
from reptrain_launcher.joining import adopt_ranks, slurm_ranks
from reptrain_launcher.rank_environment import read_rank_environment

STEP = {
    "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "8", "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1", "SLURM_JOB_ID": "70001", "SLURM_STEP_NODELIST": "gpu[07-09]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
}  # fmt: skip


def test_ranks_follow_from_the_variables_of_slurm() -> None:
    # Under a bare srun the launch node is the login node: the ranks meet on the first node of the step.
    expected = {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu07", "MASTER_PORT": "30001",
    }  # fmt: skip
    assert slurm_ranks(STEP, resolves=lambda name: True) == expected
    expected["MASTER_ADDR"] = "10.0.0.7"
    assert slurm_ranks(STEP, resolves=lambda name: False) == expected
    assert slurm_ranks(STEP | {"SLURM_STEP_NUM_TASKS": "1"}) == {}
    # A batch script has a job, but no step.
    assert slurm_ranks({name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"}) == {}


def test_adopted_ranks_are_those_of_the_launcher_that_set_them() -> None:
    environ = STEP | {"MASTER_ADDR": "chosen", "MASTER_PORT": "4000"}
    adopt_ranks(environ)
    place = read_rank_environment(environ)
    assert place is not None and (place.rank, place.world_size, place.local_rank) == (3, 4, 1)
    assert (place.master_addr, place.master_port) == ("chosen", 4000)
    torchrun_under_srun = STEP | {"RANK": "7", "WORLD_SIZE": "8"}
    adopt_ranks(torchrun_under_srun)
    assert torchrun_under_srun == STEP | {"RANK": "7", "WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    "environ",
    [
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
        {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"},
    ],
)
def test_ranks_of_mpirun_need_an_address(environ: dict[str, str]) -> None:
    with pytest.raises(LaunchError, match="MASTER_ADDR: must be set for the ranks of mpirun"):
        adopt_ranks(dict(environ))
    environ |= {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
    adopt_ranks(environ)
    place = read_rank_environment(environ)
    assert place is not None and (place.rank, place.world_size, place.local_rank) == (1, 2, 1)


def test_one_process_adopts_nothing() -> None:
    for environ in ({}, {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, {"PMI_RANK": "0"}):
        before = dict(environ)
        adopt_ranks(environ)
        assert environ == before
