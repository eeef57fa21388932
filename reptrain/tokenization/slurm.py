"""Run the jobs of `tokenize` in Slurm arrays, through submitit."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self

from reptrain.errors import ReptrainError, StoreError
from reptrain.tokenization.work import WORK
from reptrain.tokenization.workers import Argument, Result, Workers

_OWN = ("array", "dependency", "output", "error", "nodes", "ntasks")
_POLL_S = 2.0
_NAME = "reptrain-tokenize"


@dataclass(frozen=True)
class SlurmJobs:
    """Options of the arrays."""

    time: str
    """Time limit of a job, as sbatch reads it."""
    parallel: int = 256
    """Jobs at once."""
    others: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch by their long name."""

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Self:
        """Read ``time=1:00:00``, ``partition=cpu``, ``array-parallelism=64`` and other options of sbatch.

        Raises:
            StoreError: If one is malformed or reserved, or ``time`` is missing.
        """
        given: dict[str, str] = {}
        for text in texts:
            key, _, value = text.partition("=")
            key = key.strip().lstrip("-").replace("_", "-")
            if not re.fullmatch(r"[a-z][a-z-]*", key) or "\n" in value:
                raise _wrong(repr(text), "must be KEY=VALUE", "For example --slurm time=1:00:00.")
            if key in _OWN:
                raise _wrong(text, "must leave this option to reptrain", "Remove it.")
            given[key] = value.strip()
        if not given.get("time"):
            raise _wrong(
                ", ".join(texts) or "no options",
                "must give the time limit of a job",
                "Add --slurm time=1:00:00.",
            )
        parallel = given.pop("array-parallelism", "256")
        if not parallel.isascii() or not parallel.isdigit() or not 0 < int(parallel) < 10**6:
            raise _wrong(f"array-parallelism={parallel}", "must be a positive integer", "Fix the number.")
        return cls(given.pop("time"), int(parallel), given)


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

    def __init__(self, out: Path, jobs: SlurmJobs) -> None:
        super().__init__(1)
        missing = [name for name in ("sbatch", "squeue", "scancel", "scontrol") if not shutil.which(name)]
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
        try:
            while left:
                for job in [job for job in left if job.done()]:
                    yield left.pop(job), self._result(job)
                if left:
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
        except submitit.core.utils.UncompletedJobError as error:
            raise StoreError(
                f"Slurm job {job.job_id}",
                got=f"state {job.state}, no result",
                rule="must end with a result",
                remedy=f"Read {job.paths.stderr}. The same command resumes with the jobs that are left.",
            ) from error
        except submitit.core.utils.FailedJobError as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or ["no reason"]
            raise StoreError(
                f"Slurm job {job.job_id}",
                got=lines[-1],
                rule="must end with a result",
                remedy=f"Read {job.paths.stderr}. The same command resumes with the jobs that are left.",
            ) from error
        if isinstance(result, ReptrainError):
            raise result
        return result
