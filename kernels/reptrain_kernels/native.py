"""Compile a C file of this project once, into the user cache, and load it.

Without a compiler the caller uses its plain NumPy or torch code, which is slower and gives the same bits.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import platformdirs

# No fused multiply-add and no other change of rounding. The OpenMP library is the one that torch has loaded.
_FLAGS = ("-O3", "-std=c99", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")
# First with one version for each generation of x86 processors, which not all compilers support.
_FLAG_SETS = ((*_FLAGS, "-DFOR_EACH_PROCESSOR"), _FLAGS)


def load(source: Path) -> ctypes.CDLL | None:
    """The library compiled from a C file; None without a compiler.

    Args:
        source: The C file. A changed file is compiled again.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    name = hashlib.sha256(source.read_bytes() + repr((_FLAG_SETS, compiler)).encode()).hexdigest()[:16]
    built = Path(platformdirs.user_cache_dir("reptrain")) / "native" / f"{platform.machine()}-{name}.so"
    try:
        if not built.exists():
            built.parent.mkdir(parents=True, exist_ok=True)
            _compile(compiler, source, built)
        return ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError):
        pass
    # The cache cannot be written, or its file cannot be read.
    with tempfile.TemporaryDirectory() as folder:
        try:
            _compile(compiler, source, Path(folder) / f"{source.stem}.so")
            return ctypes.CDLL(str(Path(folder) / f"{source.stem}.so"))
        except (OSError, subprocess.SubprocessError):
            return None


def _compile(compiler: str, source: Path, built: Path) -> None:
    """Compile the C file to a temporary name and rename it, since other ranks may do the same.

    Raises:
        OSError: If the folder cannot be written.
        subprocess.SubprocessError: If the compiler fails.
    """
    temporary = built.with_name(f"{built.name}.{os.getpid()}")
    try:
        for flags in _FLAG_SETS:
            command = [compiler, *flags, str(source), "-o", str(temporary)]
            done = subprocess.run(command, capture_output=True, timeout=60)
            if done.returncode == 0:
                break
        done.check_returncode()
        temporary.replace(built)
    finally:
        temporary.unlink(missing_ok=True)
