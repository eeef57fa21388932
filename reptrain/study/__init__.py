"""Studies: many runs that answer one question."""

from reptrain.study.arm import Arm
from reptrain.study.collect import ArmRow, collect
from reptrain.study.events import ArmOutcome, StudyEvent, StudyResult
from reptrain.study.grid import arms
from reptrain.study.runner import run_study
from reptrain.study.schema import StudyConfig, demo_study, load_study, open_study
from reptrain.study.status import ArmStatus, study_status
from reptrain.study.verdict import verdict

__all__ = [
    "Arm",
    "ArmOutcome",
    "ArmRow",
    "ArmStatus",
    "StudyConfig",
    "StudyEvent",
    "StudyResult",
    "arms",
    "collect",
    "demo_study",
    "load_study",
    "open_study",
    "run_study",
    "study_status",
    "verdict",
]
