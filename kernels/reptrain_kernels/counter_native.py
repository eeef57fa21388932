"""`counter.random_words` and `counter.dropout` in C, for CPU tensors in eager mode.

The C file is compiled once into the user cache. Without a compiler, `counter` uses plain torch, which is
slower and gives the same bits. Code compiled by torch.compile never calls this module.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import platformdirs
import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("counter.c")
# No fused multiply-add and no other change of rounding. The OpenMP library is the one that torch has loaded.
_FLAGS = ("-O3", "-std=c99", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")
# First with one version for each generation of x86 processors, which not all compilers support.
_FLAG_SETS = ((*_FLAGS, "-DFOR_EACH_PROCESSOR"), _FLAGS)
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
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    name = hashlib.sha256(_SOURCE.read_bytes() + repr((_FLAG_SETS, compiler)).encode()).hexdigest()[:16]
    built = Path(platformdirs.user_cache_dir("reptrain")) / "native" / f"{platform.machine()}-{name}.so"
    try:
        if not built.exists():
            built.parent.mkdir(parents=True, exist_ok=True)
            _compile(compiler, built)
        return _declared(ctypes.CDLL(str(built)))
    except (OSError, subprocess.SubprocessError):
        pass
    # The cache cannot be written, or its file cannot be read.
    with tempfile.TemporaryDirectory() as folder:
        try:
            _compile(compiler, Path(folder) / "counter.so")
            return _declared(ctypes.CDLL(str(Path(folder) / "counter.so")))
        except (OSError, subprocess.SubprocessError):
            return None


def _compile(compiler: str, built: Path) -> None:
    """Compile the C file to a temporary name and rename it, since other ranks may do the same.

    Raises:
        OSError: If the folder cannot be written.
        subprocess.SubprocessError: If the compiler fails.
    """
    temporary = built.with_name(f"{built.name}.{os.getpid()}")
    try:
        for flags in _FLAG_SETS:
            command = [compiler, *flags, str(_SOURCE), "-o", str(temporary)]
            done = subprocess.run(command, capture_output=True, timeout=60)
            if done.returncode == 0:
                break
        done.check_returncode()
        temporary.replace(built)
    finally:
        temporary.unlink(missing_ok=True)


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
