"""Memory allocation of the C library, for training on a CPU."""

from __future__ import annotations

import ctypes

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
