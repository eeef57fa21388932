"""`counter.random_words` and `counter.dropout` in C, for CPU tensors in eager mode.

Without a compiler, `counter` uses plain torch (see `native`). Code compiled by torch.compile never calls this
module.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from reptrain_kernels import native

_SOURCE = Path(__file__).with_name("counter.c")
_DTYPES = {
    torch.float32: "dropout_float32",
    torch.float64: "dropout_float64",
    torch.bfloat16: "dropout_bfloat16",
}
# Below this number of units for each thread, starting the threads takes longer than the work.
_UNITS_OF_A_THREAD = 1 << 14


def is_available() -> bool:
    """Whether dropout on this CPU runs in C."""
    return _library() is not None


def random_words(key: Tensor, num_positions: int, num_units: int) -> Tensor | None:
    """See `counter.random_words`; None if the caller has to use torch."""
    library = _library_for(key)
    if library is None:
        return None
    key = key.contiguous()
    y = torch.empty(*key.shape, num_positions, num_units, dtype=torch.int32)
    library.random_words(key.data_ptr(), y.data_ptr(), key.numel() * num_positions, num_positions, num_units)
    return y


def dropout(x: Tensor, key: Tensor, rate_2: Tensor) -> Tensor | None:
    """See `counter.dropout`; None if the caller has to use torch."""
    library = _library_for(x, key)
    if library is None or x.dtype not in _DTYPES or x.shape[-1] >= 2**32:
        return None
    x, key = x.contiguous(), key.contiguous()
    y = torch.empty_like(x)
    if y.numel() == 0:
        return y
    num_positions, num_units = x.shape[-2:]
    threshold, scale = rate_2.tolist()
    threads = max(1, min(torch.get_num_threads(), x.numel() // _UNITS_OF_A_THREAD))
    getattr(library, _DTYPES[x.dtype])(
        x.data_ptr(),
        key.data_ptr(),
        y.data_ptr(),
        x.numel() // num_units,
        num_positions,
        num_units,
        int(threshold),
        scale,
        threads,
    )
    return y


def _library_for(*tensors: Tensor) -> ctypes.CDLL | None:
    """The library; None for tensors that are not plain CPU tensors, and during tracing by torch.compile."""
    if torch.compiler.is_compiling() or any(type(x) is not Tensor or x.device.type != "cpu" for x in tensors):
        return None
    return _library()


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled library; None without a compiler."""
    library = native.load(_SOURCE, openmp=True)
    return None if library is None else _declared(library)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions."""
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name in _DTYPES.values():
        function = getattr(library, name)
        function.restype = None
        function.argtypes = [pointer, pointer, pointer, *[number] * 4, ctypes.c_double, ctypes.c_int]
    library.random_words.restype = None
    library.random_words.argtypes = [pointer, pointer, number, number, number]
    return library
