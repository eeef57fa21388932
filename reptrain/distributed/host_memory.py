"""Memory of the host: how much is available, and how the C library allocates it on a CPU."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_LARGEST_INT = 2**31 - 1
_DEFAULT_MMAP_MAX = 1 << 16


def keep_freed_memory(below_bytes: int | None = None) -> bool:
    """Keep freed blocks for the next step instead of returning them to the system.

    By default glibc maps every large tensor and unmaps it when it is freed, so each step pays for page faults
    again: a quarter of a small model's step time on two cores.

    Args:
        below_bytes: Only smaller blocks, at most 32 MiB; None: all.

    Returns:
        Whether the C library accepted the setting; only glibc has it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    if below_bytes is None:
        accepted = mallopt(_M_MMAP_MAX, 0)
    else:
        accepted = mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX) and mallopt(_M_MMAP_THRESHOLD, below_bytes)
    return bool(accepted and mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))


def release_freed_memory() -> None:
    """Return the freed blocks that the process keeps to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


# Folder of the control group as it appears inside a container, and its files: versions 2 and 1.
_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def available_bytes() -> int:
    """Memory of this host that processes can still allocate; less if a control group has a lower limit."""
    available = [_available_on_host()]
    for folder, limit, used, cached in _GROUPS:
        try:
            # Cached files are counted as used, and given up for other memory.
            reclaimable = _field(Path(folder, "memory.stat"), cached)
            in_use = int(Path(folder, used).read_text()) - reclaimable
            available.append(int(Path(folder, limit).read_text()) - in_use)
        except (OSError, ValueError, StopIteration):
            # No such group, or the limit is "max".
            continue
    return max(0, min(available))


def _available_on_host() -> int:
    try:
        return 1024 * _field(Path("/proc/meminfo"), "MemAvailable:")
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _field(path: Path, name: str) -> int:
    """The number in the line of a file that begins with a word."""
    lines = (line.split() for line in path.read_text().splitlines())
    return next(int(words[1]) for words in lines if words and words[0] == name)
