"""Variables of a launcher: complete sets are read, others are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reptrain.errors import LaunchError
from reptrain_launcher.rank_environment import (
    RankEnvironment,
    is_main_rank,
    local_device_index,
    read_rank_environment,
    refuse_shared_gpu,
    shown_rank,
)

WHOLE = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node-0",
    "MASTER_PORT": "29500",
}


def test_read_rank_environment_reads_a_complete_set() -> None:
    assert read_rank_environment(WHOLE) == RankEnvironment(1, 2, 1, "node-0", 29500)
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "::1", "MASTER_PORT": "1"}
    assert read_rank_environment(alone) == RankEnvironment(0, 1, 0, "::1", 1)


@pytest.mark.parametrize("environ", [{}, {"MASTER_ADDR": "a", "MASTER_PORT": "x"}, {"LOCAL_RANK": "0"}])
def test_read_rank_environment_is_none_without_a_launcher(environ: dict[str, str]) -> None:
    assert read_rank_environment(environ) is None


@pytest.mark.parametrize("name", WHOLE)
def test_read_rank_environment_refuses_a_missing_variable(name: str) -> None:
    environ = {key: value for key, value in WHOLE.items() if key != name}
    with pytest.raises(LaunchError, match=f"^environment variable {name}: .* but got nothing. Unset RANK"):
        read_rank_environment(environ)


@pytest.mark.parametrize(
    "wrong",
    [
        *(("RANK", value) for value in ("", "x", "-1", "2", "1.0", " 1", "+1", "1_0", "٣", "9" * 300)),
        *(("WORLD_SIZE", value) for value in ("", "0", "two", str(2**40))),
        *(("LOCAL_RANK", value) for value in ("", "-1", "2")),
        *(("MASTER_PORT", value) for value in ("", "0", "65536", "http")),
        *(("MASTER_ADDR", value) for value in ("", " ", "a b", "a\n")),
    ],
)
def test_read_rank_environment_refuses_by_name(wrong: tuple[str, str]) -> None:
    name, value = wrong
    with pytest.raises(LaunchError, match=f"^environment variable {name}: must be") as refused:
        read_rank_environment(WHOLE | {name: value})
    assert len(str(refused.value)) <= 500


@pytest.mark.parametrize("environ", [{"RANK": "0"}, {"RANK": ""}, {"WORLD_SIZE": "1"}, {"LOCAL_RANK": "1"}])
def test_read_rank_environment_refuses_a_leftover(environ: dict[str, str]) -> None:
    with pytest.raises(LaunchError, match=f"must be set if {next(iter(environ))} is"):
        read_rank_environment(environ)


def test_train_refuses_a_leftover_rank_with_exit_code_2(tmp_path: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if key not in WHOLE} | {"RANK": "0"}
    command = [sys.executable, "-m", "reptrain", "train", str(tmp_path / "none.yaml")]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: environment variable WORLD_SIZE: must be set if RANK is")
    assert ended.stderr.count("\n") == 1


def test_shown_rank_is_none_for_rank_0() -> None:
    assert shown_rank({"RANK": "3"}) == "3" and not is_main_rank({"RANK": "3"})
    for environ in ({}, {"RANK": "0"}, {"RANK": ""}, {"RANK": "x"}):
        assert shown_rank(environ) is None and is_main_rank(environ)


def test_local_device_index_is_the_local_rank_or_the_only_gpu() -> None:
    assert local_device_index(3, 8, {}) == 3
    assert local_device_index(0, 1, {}) == 0
    # Slurm may show each rank one GPU.
    assert local_device_index(3, 1, {"CUDA_VISIBLE_DEVICES": "3"}) == 0
    with pytest.raises(LaunchError, match=r"LOCAL_RANK: must be less than .* GPUs, 2, but got 2"):
        local_device_index(2, 2, {"CUDA_VISIBLE_DEVICES": "0,1"})


def test_local_device_index_refuses_a_second_rank_on_the_machines_only_gpu() -> None:
    with pytest.raises(LaunchError, match=r"LOCAL_RANK: must be less than .* GPUs, 1, but got 1"):
        local_device_index(1, 1, {})


def test_refuse_shared_gpu_names_the_ranks() -> None:
    refuse_shared_gpu(["cuda:0 on a", "cuda:1 on a", "cuda:0 on b"])
    with pytest.raises(LaunchError, match="ranks 1 and 2: must each have their own GPU"):
        refuse_shared_gpu(["cuda:0 on b", "cuda:0 on a", "cuda:0 on a"])
