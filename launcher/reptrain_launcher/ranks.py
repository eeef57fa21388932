"""Which processes are the ranks below a launcher, read from /proc."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

_STARTER = b"deepspeed.launcher.launch"


def local_ranks(launcher: int, proc: Path = Path("/proc")) -> list[int]:
    """The ranks that run on this machine, or the launcher itself where there are none (yet).

    A signal to stop goes to the ranks alone: they save a checkpoint together and end with a code that
    DeepSpeed's launcher hands up. Signalled itself, it would end at once and hand up another.

    Args:
        launcher: Process id of ``deepspeed.launcher.launch``, or of ``deepspeed.launcher.runner`` above it.
        proc: The folder of processes.
    """
    below = _children(proc)
    started = [launcher, *_descendants(launcher, below)]
    starters = [pid for pid in started if _STARTER in _command(proc, pid)]
    ranks = [rank for starter in starters for rank in below[starter]]
    return ranks or [launcher]


def _children(proc: Path) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for folder in proc.iterdir():
        if folder.name.isdigit():
            try:
                status = (folder / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # pid (name) state parent ...; the name may hold anything, brackets too.
            parent = int(status.rpartition(")")[2].split()[1])
            found[parent].append(int(folder.name))
    return found


def _descendants(pid: int, below: dict[int, list[int]]) -> list[int]:
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = below[waiting.pop()]
        found += children
        waiting += children
    return found


def _command(proc: Path, pid: int) -> bytes:
    try:
        return (proc / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
