"""Environment variables that a launcher sets for each rank."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reptrain.errors import LaunchError

_ALL = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LARGEST_WORLD = 2**20


@dataclass(frozen=True)
class RankEnvironment:
    """The variables that `deepspeed` or `torchrun` set for this process."""

    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int


def read_rank_environment(environ: Mapping[str, str] = os.environ) -> RankEnvironment | None:
    """Read the variables of a launcher; None if no launcher started this process.

    MASTER_ADDR and MASTER_PORT alone do not count: job scripts export them.

    Args:
        environ: The environment.

    Raises:
        LaunchError: If one of RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT is missing,
            malformed, or contradicts another.
    """
    # Child processes of a single-process run inherit LOCAL_RANK=0 (see reptrain/distributed/world.py).
    if not {"RANK", "WORLD_SIZE"} & environ.keys() and environ.get("LOCAL_RANK", "0") == "0":
        return None
    for name in _ALL:
        if name not in environ:
            given = next(other for other in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if other in environ)
            raise _wrong(name, "nothing", f"must be set if {given} is")
    world_size = _integer(environ, "WORLD_SIZE", 1, _LARGEST_WORLD)
    rank = _integer(environ, "RANK", 0, world_size - 1)
    if "LOCAL_RANK" not in environ and world_size > 1:
        raise _wrong("LOCAL_RANK", "nothing", f"must be set if WORLD_SIZE is {world_size}")
    local_rank = _integer(environ, "LOCAL_RANK", 0, world_size - 1) if "LOCAL_RANK" in environ else 0
    host = environ["MASTER_ADDR"]
    if not host or not host.isprintable() or " " in host:
        raise _wrong("MASTER_ADDR", repr(host), "must be the name or address of rank 0's host")
    return RankEnvironment(rank, world_size, local_rank, host, _integer(environ, "MASTER_PORT", 1, 65535))


def is_main_rank(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process prints for all ranks: it is rank 0, or was started without a launcher."""
    return shown_rank(environ) is None


def shown_rank(environ: Mapping[str, str] = os.environ) -> str | None:
    """The rank to print before an error message; None for rank 0 and if RANK is not a number."""
    rank = environ.get("RANK", "0")
    return None if rank == "0" or not (rank.isascii() and rank.isdigit()) else rank[:7]


def local_device_index(local_rank: int, num_devices: int, environ: Mapping[str, str] = os.environ) -> int:
    """Index of a rank's GPU among the visible GPUs.

    Args:
        local_rank: Rank within the machine.
        num_devices: Number of visible GPUs. With 1 and CUDA_VISIBLE_DEVICES, each rank has its own visible
            GPU, as Slurm sets it; `refuse_shared_gpu` checks it when the ranks have joined.
        environ: The environment.

    Raises:
        LaunchError: If there are fewer GPUs than ranks.
    """
    if num_devices == 1 and "CUDA_VISIBLE_DEVICES" in environ:
        return 0
    if local_rank >= num_devices:
        raise LaunchError(
            "LOCAL_RANK",
            got=local_rank,
            rule=f"must be less than the number of visible GPUs, {num_devices}",
            remedy="Start fewer ranks on this machine, list more GPUs in CUDA_VISIBLE_DEVICES, or set it to"
            " another GPU for each rank.",
        )
    return local_rank


def refuse_shared_gpu(gpus: Sequence[str]) -> None:
    """Refuse ranks that use the same GPU: NCCL cannot, and each would get half of the memory.

    Args:
        gpus: The name of each rank's GPU, unique among all machines, in rank order.

    Raises:
        LaunchError: If two are equal.
    """
    first: dict[str, int] = {}
    for rank, gpu in enumerate(gpus):
        other = first.setdefault(gpu, rank)
        if other != rank:
            raise LaunchError(
                f"ranks {other} and {rank}",
                got=f"the same GPU, {gpu}",
                rule="must each have their own GPU",
                remedy="Start fewer ranks on this machine, list more GPUs in CUDA_VISIBLE_DEVICES, or set it"
                " to another GPU for each rank.",
            )


def _integer(environ: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = environ[name]
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
        raise _wrong(name, repr(text), f"must be an integer from {low} to {high}")
    return int(text)


def _wrong(name: str, got: object, rule: str) -> LaunchError:
    return LaunchError(
        f"environment variable {name}",
        got=got,
        rule=rule,
        remedy="Unset RANK, WORLD_SIZE and LOCAL_RANK to train in one process, or start ranks with"
        " `reptrain launch`, deepspeed or torchrun.",
    )
