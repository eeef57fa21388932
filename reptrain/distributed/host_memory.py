"""How the C library hands memory out on a machine that trains on its CPU."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed blocks for the next step instead of giving them back to the system.

    glibc maps every large tensor anew and unmaps it when it is freed, so that each step pays for its pages
    again: a quarter of the time of a small model's step on two cores.

    Returns:
        Whether the C library took the setting; others than glibc have none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))
