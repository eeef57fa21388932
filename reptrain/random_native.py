"""Philox4x32-10 over arrays, and permutations as tables, in C."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

UInt64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]


def blocks(key: UInt64s, word: UInt64s, third: int, use: int) -> UInt64s | None:
    """The first 64 bits of each block; None if the caller has to use NumPy.

    Args:
        key: uint64; broadcasts with ``word``.
        word: uint64, the first two 32-bit words of each counter, the first in the low half.
        third: The third word.
        use: The fourth word.
    """
    library = _library()
    if library is None:
        return None
    key, word = (np.ascontiguousarray(part, np.uint64) for part in np.broadcast_arrays(key, word))
    out = np.empty(word.shape, np.uint64)
    library.blocks(key.ctypes.data, word.ctypes.data, third, use, out.ctypes.data, out.size)
    return out


def shuffled(key: UInt64s, out: Int64s) -> bool:
    """Fill ``out`` with the table of `random.shuffled`; False if the caller has to use NumPy.

    Args:
        key: uint64, a single key.
        out: int64, contiguous; its size is the number of values, at least 1. As much again is allocated.
    """
    library = _library()
    if library is None or not out.flags.c_contiguous:
        return False
    scratch = np.empty(out.size, np.uint64)
    library.shuffled(int(key), out.size, out.ctypes.data, scratch.ctypes.data)
    return True


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled library; None without a compiler."""
    from reptrain_kernels import native

    library: ctypes.CDLL | None = native.load(Path(__file__).with_name("random.c"))
    if library is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_uint64
        library.blocks.restype = None
        library.blocks.argtypes = [pointer, pointer, number, number, pointer, ctypes.c_int64]
        library.shuffled.restype = None
        library.shuffled.argtypes = [number, ctypes.c_int64, pointer, pointer]
    return library
