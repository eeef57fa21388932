"""The environment variables through which a launcher tells a process which rank it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from reptrain.errors import LaunchError

_ALL = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LARGEST_WORLD = 2**20


@dataclass(frozen=True)
class RankEnvironment:
    """What `deepspeed` or `torchrun` set for this process."""

    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int


def read_rank_environment(environ: Mapping[str, str] = os.environ) -> RankEnvironment | None:
    """The rank that a launcher gave this process; None where no launcher started it.

    MASTER_ADDR and MASTER_PORT alone, as job scripts export them, are no launcher's.

    Args:
        environ: The environment.

    Raises:
        LaunchError: If one of RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT is missing,
            malformed, or contradicts another.
    """
    # A process that trained alone leaves LOCAL_RANK=0 to its children (see engine/distributed.py).
    if not {"RANK", "WORLD_SIZE"} & environ.keys() and environ.get("LOCAL_RANK", "0") == "0":
        return None
    for name in _ALL:
        if name not in environ:
            given = next(other for other in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if other in environ)
            raise _wrong(name, "nothing", f"must be set where {given} is")
    world_size = _integer(environ, "WORLD_SIZE", 1, _LARGEST_WORLD)
    rank = _integer(environ, "RANK", 0, world_size - 1)
    if "LOCAL_RANK" not in environ and world_size > 1:
        raise _wrong("LOCAL_RANK", "nothing", f"must be set where WORLD_SIZE is {world_size}")
    local_rank = _integer(environ, "LOCAL_RANK", 0, world_size - 1) if "LOCAL_RANK" in environ else 0
    host = environ["MASTER_ADDR"]
    if not host or not host.isprintable() or " " in host:
        raise _wrong("MASTER_ADDR", repr(host), "must be the name or address of rank 0's machine")
    return RankEnvironment(rank, world_size, local_rank, host, _integer(environ, "MASTER_PORT", 1, 65535))


def is_main_rank(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process prints for all ranks: it is rank 0, or no launcher started it."""
    return shown_rank(environ) is None


def shown_rank(environ: Mapping[str, str] = os.environ) -> str | None:
    """The rank to name before an error message; None for rank 0 and where RANK is no number."""
    rank = environ.get("RANK", "0")
    return None if rank == "0" or not (rank.isascii() and rank.isdigit()) else rank[:7]


def local_device_index(local_rank: int, num_devices: int) -> int:
    """Which of the GPUs that a process sees is its own.

    Args:
        local_rank: Its place among the ranks of the machine.
        num_devices: GPUs that it sees. Where each rank sees one alone, that is its own.

    Raises:
        LaunchError: If there are fewer GPUs than ranks.
    """
    if num_devices == 1:
        return 0
    if local_rank >= num_devices:
        raise LaunchError(
            "LOCAL_RANK",
            got=local_rank,
            rule=f"must be below the {num_devices} GPUs that this process sees",
            remedy="Start fewer ranks on this machine, or show more GPUs in CUDA_VISIBLE_DEVICES.",
        )
    return local_rank


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
