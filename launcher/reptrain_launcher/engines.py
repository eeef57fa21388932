"""The commands of torchrun and mpirun that start the ranks."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from reptrain.errors import LaunchError
from reptrain_launcher.hostfile import written_for_deepspeed
from reptrain_launcher.local import free_port, is_this_machine

_PORT = 29500


def torchrun_command(
    train: Sequence[str],
    *,
    hosts: Mapping[str, int] | None,
    gpus: int | None,
    node_rank: int | None = None,
    master_addr: str | None = None,
    master_port: int | None = None,
) -> list[str]:
    """The torchrun command for this host. With several hosts, each host runs its own command.

    Args:
        train: The arguments of ``reptrain``.
        hosts: Ranks by host; None: this machine only.
        gpus: Ranks on this host; None: the host's slots.
        node_rank: Index of this host in the hostfile; None: the index of this machine's name.
        master_addr: Address of the first host; None: its name in the hostfile.
        master_port: Port of the rendezvous; None: a free port, or 29500 with other hosts.

    Raises:
        LaunchError: If the index of this host is unknown or out of range.
    """
    command = [sys.executable, "-m", "torch.distributed.run"]
    if hosts is None or is_this_machine(hosts):
        ranks = gpus or next(iter(hosts.values()) if hosts else iter([1]))
        # The rendezvous of torchrun resolves this machine's name, which may have no address.
        port = free_port() if master_port is None else master_port
        rendezvous = ["--nnodes=1", f"--nproc-per-node={ranks}", "--master-addr=127.0.0.1"]
        return [*command, *rendezvous, f"--master-port={port}", "-m", "reptrain", *train]
    names = [*hosts]
    if node_rank is None:
        own = [socket.gethostname(), socket.gethostname().partition(".")[0]]
        node_rank = next((names.index(name) for name in own if name in names), -1)
    if not 0 <= node_rank < len(names):
        raise LaunchError(
            "--node-rank",
            got="nothing" if node_rank < 0 else node_rank,
            rule=f"must be from 0 to {len(names) - 1}, or this machine's name must be in the hostfile",
            remedy="Run the command on each host with its index in the hostfile, counted from 0.",
        )
    return [
        *command,
        f"--nnodes={len(names)}",
        f"--node-rank={node_rank}",
        f"--nproc-per-node={gpus or hosts[names[node_rank]]}",
        f"--master-addr={master_addr or names[0]}",
        f"--master-port={master_port or _PORT}",
        *("-m", "reptrain"),
        *train,
    ]


def mpi_command(
    train: Sequence[str],
    *,
    hostfile: Path | None,
    hosts: Mapping[str, int] | None,
    gpus: int | None,
    variables: Mapping[str, str],
    master_addr: str | None = None,
    master_port: int | None = None,
) -> list[str]:
    """The mpirun command of Open MPI.

    mpirun forwards variables by name, so their values do not appear in the command.

    Args:
        train: The arguments of ``reptrain``.
        hostfile: The hostfile; None: this machine only.
        hosts: Ranks by host, from the hostfile.
        gpus: Ranks on each host; None: the slots.
        variables: The variables to forward.
        master_addr: Address of the first host; None: its name in the hostfile.
        master_port: Port of the rendezvous; None: a free port, or 29500 with other hosts.
    """
    is_local = hosts is None or is_this_machine(hosts)
    slots = {"localhost": gpus or 1} if hosts is None else {name: gpus or n for name, n in hosts.items()}
    command = ["mpirun", "-np", str(sum(slots.values())), "--bind-to", "none"]
    if hostfile is not None and not is_local:
        command += ["--hostfile", str(written_for_deepspeed(hostfile, slots)), "--map-by", "slot"]
    elif is_local:
        command += ["--host", f"localhost:{sum(slots.values())}"]
    address = "127.0.0.1" if is_local else master_addr or next(iter(slots))
    port = master_port or (free_port() if is_local else _PORT)
    for setting in (f"MASTER_ADDR={address}", f"MASTER_PORT={port}", *sorted(variables)):
        command += ["-x", setting]
    return [*command, sys.executable, "-m", "reptrain", *train]
