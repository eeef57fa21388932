"""Slurm's queue: its jobs and their states, by the client commands. No accounting database is needed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from typing import NamedTuple


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


def read_queue() -> dict[str, QueuedJob] | None:
    """All pending and running jobs of this user by id (``12`` or ``12_3``); None if Slurm does not answer."""
    listed = slurm_answer(["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%r"])
    if listed is None:
        return None
    rows = [line.strip().split("|") for line in listed.splitlines()]
    return {row[0]: QueuedJob(row[1], row[2]) for row in rows if len(row) == 3}


def final_state(job: str) -> str:
    """Slurm's state of a job that has left the queue, such as CANCELLED; UNKNOWN if it is forgotten."""
    shown = slurm_answer(["scontrol", "--oneliner", "show", "job", job]) or ""
    match = re.search(r"\bJobState=(\w+)", shown)
    return match[1] if match else "UNKNOWN"


def slurm_answer(command: Sequence[str]) -> str | None:
    """What a client command prints; None if it fails or does not answer within a minute."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    return ended.stdout if ended.returncode == 0 else None
