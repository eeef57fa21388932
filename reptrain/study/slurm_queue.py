"""Slurm's queue: its jobs and their states, by the client commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from reptrain.errors import StudyError


class QueuedJob(NamedTuple):
    """A job in the queue."""

    state: str
    """Slurm's state, such as PENDING or RUNNING."""
    reason: str
    """Why it is pending."""

    @property
    def is_pending(self) -> bool:
        """Whether it has not started, or waits to be started again."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING")


def check_slurm() -> None:
    """Refuse a machine without Slurm's client commands, or without submitit.

    Raises:
        StudyError: Naming what is missing.
    """
    missing = [name for name in ("sbatch", "srun", "squeue", "scancel", "scontrol") if not shutil.which(name)]
    if missing:
        raise StudyError(
            "--slurm",
            got=f"no {', '.join(missing)} on PATH",
            rule="must be used on a machine with Slurm's commands",
            remedy="Run it on a login node of the cluster, or remove --slurm to run on this machine.",
        )
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise StudyError(
            "--slurm",
            got="no package submitit",
            rule="needs the package submitit",
            remedy="pip install 'reptrain[slurm]'.",
        ) from error


def read_queue() -> dict[str, QueuedJob] | None:
    """All pending and running jobs of this user by id (``12`` or ``12_3``); None if Slurm does not answer."""
    listed = _call(["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%r"])
    if listed is None:
        return None
    rows = [line.strip().split("|") for line in listed.splitlines()]
    return {row[0]: QueuedJob(row[1], row[2]) for row in rows if len(row) == 3}


def final_state(job: str) -> str:
    """Slurm's state of a job that has left the queue, such as CANCELLED; UNKNOWN if it is forgotten."""
    shown = _call(["scontrol", "--oneliner", "show", "job", job]) or ""
    match = re.search(r"\bJobState=(\w+)", shown)
    return match[1] if match else "UNKNOWN"


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs, pending or running."""
    _each("scancel", [], jobs)


def stop_with_checkpoint(jobs: Iterable[str]) -> None:
    """Cancel pending jobs, and ask running ones to stop with a checkpoint."""
    ids = [*jobs]
    _each("scancel", ["--state=PENDING"], ids)
    _each("scancel", ["--signal=TERM", "--state=RUNNING"], ids)


def _each(command: str, options: Sequence[str], jobs: Iterable[str]) -> None:
    ids = [*jobs]
    for first in range(0, len(ids), 100):
        _call([command, "--quiet", *options, *ids[first : first + 100]])


def _call(command: Sequence[str]) -> str | None:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    return ended.stdout if ended.returncode == 0 else None
