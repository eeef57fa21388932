"""The rank processes of a launcher, read from /proc."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

_NODE_LAUNCHERS = (b"deepspeed.launcher.launch", b"torch.distributed.run")


def local_ranks(launcher: int, proc: Path = Path("/proc")) -> list[int]:
    """Process ids of the ranks on this machine, or of the launcher itself while there are none.

    Stop signals go to the ranks only: they save a checkpoint together, and DeepSpeed's launcher returns their
    exit code. A signal to the launcher would end it immediately with another exit code.

    Args:
        launcher: Process id of torchrun, of ``deepspeed.launcher.launch``, or of its parent, the runner.
        proc: The folder of processes.
    """
    children = _children(proc)
    processes = [launcher, *_descendants(launcher, children)]
    node_launchers = [
        pid for pid in processes if any(name in _command(proc, pid) for name in _NODE_LAUNCHERS)
    ]
    ranks = [rank for pid in node_launchers for rank in children[pid]]
    return ranks or [launcher]


def _children(proc: Path) -> dict[int, list[int]]:
    children: dict[int, list[int]] = defaultdict(list)
    for folder in proc.iterdir():
        if folder.name.isdigit():
            try:
                status = (folder / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # pid (name) state parent ...; the name may contain any character, even ")".
            parent = int(status.rpartition(")")[2].split()[1])
            children[parent].append(int(folder.name))
    return children


def _descendants(pid: int, children: dict[int, list[int]]) -> list[int]:
    descendants: list[int] = []
    pending = [pid]
    while pending:
        direct = children[pending.pop()]
        descendants += direct
        pending += direct
    return descendants


def _command(proc: Path, pid: int) -> bytes:
    try:
        return (proc / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
