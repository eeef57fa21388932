"""The state of a study, read from the ends of its runs' records."""

from __future__ import annotations

from pathlib import Path

from reptrain.runs.folder import RunFolder
from reptrain.runs.records import FrozenRecord
from reptrain.study.arm_progress import read_progress
from reptrain.study.collect import RowState
from reptrain.study.grid import Arm, arms
from reptrain.study.paths import difference, run_path
from reptrain.study.schema import StudyConfig


class ArmStatus(FrozenRecord):
    """The state of one arm.

    Attributes:
        arm: Its name.
        state: State of its run; ``waiting`` if it has no run folder.
        reason: Why it failed or stopped.
        tokens: Tokens consumed so far.
        tokens_per_s: Latest training speed.
    """

    arm: str
    state: RowState
    reason: str | None = None
    tokens: int = 0
    tokens_per_s: float | None = None


def study_status(study: StudyConfig, out: Path) -> list[ArmStatus]:
    """The state of every arm, in their order.

    Raises:
        StudyError: If the study itself is wrong.
        RunError: If a run folder cannot be read.
    """
    return [_status(arm, run_path(out, arm.name)) for arm in arms(study)]


def _status(arm: Arm, run: Path) -> ArmStatus:
    if not (run / "plan.json").exists():
        return ArmStatus(arm=arm.name, state="waiting")
    folder = RunFolder.open(run)
    differs = difference(arm.config, folder)
    if differs is not None:
        return ArmStatus(arm=arm.name, state=differs)
    status, progress = folder.status(), read_progress(run)
    return ArmStatus(
        arm=arm.name,
        state=status.state,
        reason=status.reason,
        tokens=progress.tokens,
        tokens_per_s=progress.tokens_per_s,
    )
