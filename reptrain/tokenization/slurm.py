"""Run the jobs of `tokenize` in Slurm arrays, through submitit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self

from reptrain.errors import ReptrainError, StoreError
from reptrain.tokenization.work import WORK
from reptrain.tokenization.workers import Argument, Result, Workers
from reptrain_launcher.slurm_script import read_options
from reptrain_launcher.squeue import final_state, read_queue

_OWN = ("array", "dependency", "output", "error", "nodes", "ntasks")
_POLL_S = 2.0
_QUEUE_S = 15.0
# Until another node sees a file: a shared file system may cache folders for a minute.
_VISIBLE_S = 90.0
_NAME = "reptrain-tokenize"


@dataclass(frozen=True)
class SlurmJobs:
    """Options of the arrays."""

    time: str
    """Time limit of a job, as sbatch reads it."""
    parallel: int = 256
    """Jobs at once."""
    others: dict[str, str | bool] = field(default_factory=dict)
    """Further options of sbatch by their long name; True for one without a value."""

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Self:
        """Read ``time=1:00:00``, ``partition=cpu``, ``exclusive``, ``array-parallelism=64`` and other options
        of sbatch.

        Raises:
            StoreError: If one is malformed or reserved, or ``time`` is missing.
        """
        given = read_options(texts, _wrong)
        for key in (key for key in given if key in _OWN):
            raise _wrong(key, "must leave this option to reptrain", "Remove it.")
        if not given.get("time"):
            raise _wrong(
                ", ".join(texts) or "no options",
                "must give the time limit of a job",
                "Add --slurm time=1:00:00.",
            )
        parallel = given.pop("array-parallelism", "256")
        if not parallel.isascii() or not parallel.isdigit() or not 0 < int(parallel) < 10**6:
            raise _wrong(f"array-parallelism={parallel}", "must be a positive integer", "Fix the number.")
        return cls(given.pop("time"), int(parallel), {key: value or True for key, value in given.items()})


def _wrong(got: str, rule: str, remedy: str) -> StoreError:
    return StoreError("--slurm", got=got, rule=rule, remedy=remedy)


@dataclass(frozen=True)
class _Caught(Generic[Argument, Result]):
    """A function that returns its error, so that the error arrives whole."""

    function: Callable[[Argument], Result]

    def __call__(self, argument: Argument) -> Result | ReptrainError:
        try:
            return self.function(argument)
        except ReptrainError as error:
            return error


class SlurmWorkers(Workers):
    """Runs independent jobs, each stage as one Slurm array.

    Args:
        out: The store's folder, which all nodes see; submitit's files are in its work folder.
        jobs: Options of the arrays.

    Raises:
        StoreError: If Slurm's commands or submitit are missing.
    """

    remote = True

    def __init__(self, out: Path, jobs: SlurmJobs) -> None:
        super().__init__(1)
        needed = ("sbatch", "srun", "squeue", "scancel", "scontrol")
        missing = [name for name in needed if not shutil.which(name)]
        if missing:
            raise _wrong(
                f"no {', '.join(missing)} on PATH",
                "must be used on a machine with Slurm's commands",
                "Run it on a login node of the cluster, or leave --slurm out.",
            )
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise _wrong("no submitit", "must have it installed", "pip install 'reptrain[slurm]'.") from error
        self._folder, self._jobs = (out / WORK / "slurm").absolute(), jobs

    def run(
        self, function: Callable[[Argument], Result], arguments: Sequence[Argument]
    ) -> Iterator[tuple[Argument, Result]]:
        """See `Workers.run`. If the caller ends early, the jobs that are left are canceled.

        Raises:
            StoreError: If sbatch refuses the array, or a job ends without a result.
        """
        if not arguments:
            return
        left = dict(zip(self._submit(function, arguments), arguments, strict=True))
        queue = _Queue()
        try:
            while left:
                # `done` would ask sacct, which needs an accounting database.
                for job in [job for job in left if job.paths.result_pickle.exists()]:
                    yield left.pop(job), self._result(job)
                if left:
                    queue.refuse_lost(left)
                    time.sleep(_POLL_S)
        finally:
            for job in left:
                job.cancel(check=False)

    def _submit(self, function: Callable[[Argument], Result], arguments: Sequence[Argument]) -> list[Any]:
        import submitit

        self._folder.mkdir(parents=True, exist_ok=True)
        executor = submitit.SlurmExecutor(folder=self._folder)
        executor.update_parameters(
            job_name=_NAME,
            time=self._jobs.time,
            array_parallelism=self._jobs.parallel,
            additional_parameters=self._jobs.others,
        )
        try:
            submitted: list[Any] = executor.map_array(_Caught(function), list(arguments))
        except submitit.core.utils.FailedJobError as error:
            lines = str(error).splitlines() or ["no reason"]
            raise _wrong(lines[-1], "must be accepted by sbatch", "Change the option.") from error
        return submitted

    def _result(self, job: Any) -> Any:
        import submitit

        try:
            result = job.result()
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or ["no reason"]
            raise _without_result(job, lines[-1]) from error
        if isinstance(result, ReptrainError):
            raise result
        return result


class _Queue:
    """Looks for jobs that left Slurm's queue without a result, such as one that was killed for its memory."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _QUEUE_S
        self._gone: dict[str, float] = {}
        """When each job was first missing."""

    def refuse_lost(self, jobs: Iterable[Any]) -> None:
        """Refuse jobs that have been missing for so long that their result would be visible.

        Raises:
            StoreError: Naming the first.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _QUEUE_S
        queued = read_queue()
        if queued is None:
            return
        self._gone = {job: since for job, since in self._gone.items() if job not in queued}
        for job in jobs:
            if job.job_id not in queued and now - self._gone.setdefault(job.job_id, now) >= _VISIBLE_S:
                raise _without_result(job, f"state {final_state(job.job_id)}, no result")


def _without_result(job: Any, got: str) -> StoreError:
    return StoreError(
        f"Slurm job {job.job_id}",
        got=got,
        rule="must end with a result",
        remedy=f"Read {job.paths.stderr}. The same command resumes with the jobs that are left.",
    )
