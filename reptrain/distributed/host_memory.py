"""Memory allocation of the C library, for training on a CPU."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed blocks for the next step instead of returning them to the system.

    By default glibc maps every large tensor and unmaps it when it is freed, so each step pays for page faults
    again: a quarter of a small model's step time on two cores.

    Returns:
        Whether the C library accepted the setting; only glibc has it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))
