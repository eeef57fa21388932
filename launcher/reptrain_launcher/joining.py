"""For ranks that srun or mpirun started: set RANK and the other variables of `torchrun`."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping, MutableMapping

from reptrain.errors import LaunchError

_OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
_HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def adopt_ranks(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, if srun or mpirun started several ranks.

    Nothing changes if another launcher has set RANK or WORLD_SIZE.

    Args:
        environ: The environment to read and to extend.

    Raises:
        LaunchError: If mpirun started the ranks and MASTER_ADDR or MASTER_PORT is missing.
    """
    if {"RANK", "WORLD_SIZE"} & environ.keys():
        return
    found = slurm_ranks(environ) or _mpi_ranks(environ)
    for name, value in found.items():
        # A job script may set the rendezvous itself.
        if name in _NAMES:
            environ[name] = value
        else:
            environ.setdefault(name, value)


def slurm_ranks(environ: Mapping[str, str], resolves: Callable[[str], bool] | None = None) -> dict[str, str]:
    """The variables of a rank in a job step of srun; empty outside of one, and for a step with one task.

    The ranks meet on the first node of the step. The port follows from the job id, so that jobs that
    share a node use different ports.

    Args:
        environ: The environment of a process that srun started.
        resolves: Whether the name of a node has an address; None: ask the system. Slurm may know a node whose
            name has no address: then the ranks meet on the host where srun runs.

    Source:
        The "OUTPUT ENVIRONMENT VARIABLES" of srun(1).
    """
    # A batch script also has the variables of the job, but is not in a step.
    if "SLURM_STEP_ID" not in environ or "SLURM_PROCID" not in environ:
        return {}
    num_ranks = environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", "1"))
    if num_ranks == "1":
        return {}
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    first = first_node(nodes)
    if not first or not (resolves or _resolves)(first):
        first = environ.get("SLURM_LAUNCH_NODE_IPADDR") or environ.get("SLURM_SRUN_COMM_HOST", first)
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": num_ranks,
        "LOCAL_RANK": environ.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": first,
        "MASTER_PORT": str(20_000 + int(environ.get("SLURM_JOB_ID", "0")) % 20_000),
    }


def first_node(nodes: str) -> str:
    """The first name in a Slurm node list.

    >>> first_node("gpu[07-09,12],cpu1")
    'gpu07'
    >>> first_node("login1,login2")
    'login1'
    >>> first_node("rack[1-2]-node[3,5]")
    'rack1-node3'
    """
    depth, end = 0, len(nodes)
    for place, character in enumerate(nodes):
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            end = place
            break
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes[:end])


def _mpi_ranks(environ: Mapping[str, str]) -> dict[str, str]:
    for names in (_OPEN_MPI, _HYDRA):
        if names[0] in environ and environ.get(names[1], "1") != "1":
            break
    else:
        return {}
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in environ:
            raise LaunchError(
                f"environment variable {name}",
                got="nothing",
                rule=f"must be set for the ranks of mpirun ({names[0]} is set)",
                remedy="Start them with `reptrain launch --mpi`, or pass -x MASTER_ADDR and -x MASTER_PORT.",
            )
    return {own: environ[name] for own, name in zip(_NAMES, names, strict=True) if name in environ}


def _resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True
