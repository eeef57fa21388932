"""Compile a C file of this project once, into the user cache, and load it.

Without a compiler the caller uses its plain NumPy or torch code, which is slower and gives the same bits.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import platformdirs

# No fused multiply-add and no other change of rounding.
_FLAGS = ("-O3", "-std=c99", "-ffp-contract=off", "-shared", "-fPIC")
# A function that is marked EACH_PROCESSOR has one version for each generation of x86 processors.
_VERSIONS = '-DEACH_PROCESSOR=__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))'
_ONE_VERSION = "-DEACH_PROCESSOR="
_INCLUDE = re.compile(rb'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def load(source: Path, *, openmp: bool = False) -> ctypes.CDLL | None:
    """The library compiled from a C file; None without a compiler.

    Args:
        source: The C file. It is compiled again if it changes, or a header of this project that it includes.
        openmp: Whether it uses OpenMP. The caller must have imported torch: the library then uses torch's
            threads. If the library came first, torch would get the OpenMP library of the system.
    """
    compiler = _compiler()
    if compiler is None:
        return None
    flags = (*_FLAGS, "-fopenmp") if openmp else _FLAGS
    # Not all compilers support several versions of a function.
    commands = [(*compiler, *flags, versions) for versions in (_VERSIONS, _ONE_VERSION)]
    name = hashlib.sha256(_content(source) + repr(commands).encode()).hexdigest()[:16]
    built = Path(platformdirs.user_cache_dir("reptrain")) / "native" / f"{platform.machine()}-{name}.so"
    try:
        if not built.exists():
            built.parent.mkdir(parents=True, exist_ok=True)
            _compile(commands, source, built)
        return ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError):
        pass
    # The cache cannot be written, or its file cannot be read.
    with tempfile.TemporaryDirectory() as folder:
        try:
            _compile(commands, source, Path(folder) / f"{source.stem}.so")
            return ctypes.CDLL(str(Path(folder) / f"{source.stem}.so"))
        except (OSError, subprocess.SubprocessError):
            return None


def _content(source: Path) -> bytes:
    """The bytes of a C file, followed by those of the headers that it includes by a quoted path."""
    content = source.read_bytes()
    headers = [source.parent / os.fsdecode(name) for name in _INCLUDE.findall(content)]
    return b"".join([content, *(_content(header) for header in headers)])


def _compiler() -> list[str] | None:
    """The compiler's command by the variable CC, such as ``ccache gcc``; None if there is none."""
    try:
        program, *options = shlex.split(os.environ.get("CC", "")) or ["cc"]
    except ValueError:
        # A quote without its end.
        return None
    found = shutil.which(program)
    return None if found is None else [found, *options]


def _compile(commands: Sequence[Sequence[str]], source: Path, built: Path) -> None:
    """Compile the C file by the first command that works, under a temporary name, and rename it.

    Other processes may do the same, on other machines too, where they may have the same process id.

    Raises:
        OSError: If the folder cannot be written.
        subprocess.SubprocessError: If the compiler fails.
    """
    with tempfile.TemporaryDirectory(prefix=f".{built.stem}-", dir=built.parent) as folder:
        temporary = Path(folder) / built.name
        for command in commands:
            done = subprocess.run(
                [*command, str(source), "-o", str(temporary)], capture_output=True, timeout=60
            )
            if done.returncode == 0:
                break
        done.check_returncode()
        temporary.replace(built)
