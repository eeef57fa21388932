"""The environment of a run: versions, commit, machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from reptrain.text.remote import hide_credentials

_PACKAGES = (
    "reptrain",
    "torch",
    "triton",
    "deepspeed",
    "numpy",
    "pyarrow",
    "sentencepiece",
    "pydantic",
)


def collect(extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A description of this process's environment for JSON. Imports none of the packages.

    Args:
        extra: Further entries: devices, ranks.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: release for name in _PACKAGES if (release := _version(name))},
        "commit": _commit(Path.cwd()),
        "command": hide_credentials(sys.argv),
        "host": platform.node(),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        **(extra or {}),
    }


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(folder: Path) -> str | None:
    """The git commit of a folder, with `+changes` if files differ from it; None outside git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def processor() -> str:
    """The processor's name on Linux, otherwise the architecture."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
