"""Slurm's client commands: whether they are there, and jobs that are canceled or stopped."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence

from reptrain.errors import StudyError
from reptrain_launcher.squeue import slurm_answer


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
        slurm_answer([command, "--quiet", *options, *ids[first : first + 100]])
