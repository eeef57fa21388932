"""Jobs of a study, and the protocol of an executor: local processes, or Slurm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from reptrain_launcher.process import Ended

MOST_TRIES = 3
"""A failed job is started again at most twice."""


@dataclass(frozen=True)
class Job:
    """A command to execute, and the jobs that come before it.

    Attributes:
        name: Name of the job's node.
        command: The program and its arguments.
        log: File for its output.
        after: Jobs that must be done first. If one of them fails, this job is blocked.
        follows: Jobs that must have ended first, in any state.
        checkpoint: File that names the newest checkpoint, by which progress is known; None for a job without.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    after: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    checkpoint: Path | None = None


class JobOutcome(NamedTuple):
    """What became of a job whose process has ended."""

    state: Literal["done", "failed", "retry", "stopped"]
    message: str = ""


class JobEnd(NamedTuple):
    """The end of a job.

    ``blocked``: a job before it failed. ``waiting``: not started, because of a signal.
    """

    state: Literal["done", "failed", "stopped", "blocked", "waiting"]
    message: str = ""
    seconds: float = 0.0


Judge = Callable[[Job, Ended, int], JobOutcome]
"""Judges an ended job by its run folder; the number is that of its starts so far."""


@dataclass(frozen=True)
class Listener:
    """Functions that an executor calls. All arguments are names of jobs.

    Attributes:
        started: A job was started.
        running: A job is still running; called about twice a second.
        ended: A job has ended for good.
    """

    started: Callable[[str], None] = field(default=lambda name: None)
    running: Callable[[str, float], None] = field(default=lambda name, seconds: None)
    ended: Callable[[str, JobEnd], None] = field(default=lambda name, end: None)


class Executor(Protocol):
    """Executes jobs: `reptrain.study.local_pool.LocalPool`, or a scheduler."""

    is_local: bool
    """Whether the jobs are children of this process, and must end with it."""

    def execute(self, jobs: Sequence[Job], judge: Judge, listener: Listener) -> Mapping[str, JobEnd]:
        """Execute jobs in an order that respects `after` and `follows`, until all have ended.

        A signal to this process stops the running jobs with their checkpoints and starts no more.

        Args:
            jobs: The jobs; every job in `after` and `follows` is among them.
            judge: Judges a job whose process has ended; ``retry`` starts it again.
            listener: Hears of starts, progress and ends.

        Returns:
            The end of every job, by name.
        """
