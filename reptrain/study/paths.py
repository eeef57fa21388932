"""The paths in a study's folder: configurations, runs, logs and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from reptrain.config import config_fingerprint
from reptrain.config.numerics import NUMERICS_VERSION
from reptrain.runs.folder import RunFolder
from reptrain.study.grid import Arm


def config_path(out: Path, arm: str) -> Path:
    """The arm's resolved configuration, the input of its training process."""
    return out / "configs" / f"{arm}.yaml"


def run_path(out: Path, arm: str) -> Path:
    """The arm's run folder."""
    return out / "runs" / arm


def log_path(out: Path, arm: str) -> Path:
    """The output of the arm's training process, over all its starts."""
    return out / "logs" / f"{arm}.log"


def report_path(out: Path) -> Path:
    """The report."""
    return out / "report.html"


def is_run_of(arm: Arm, folder: RunFolder) -> bool:
    """Whether a run folder holds this arm: equal numerics version and settings, on any store and device."""
    return difference(arm, folder) is None


def difference(arm: Arm, folder: RunFolder) -> Literal["other numerics", "other config"] | None:
    """How the run in a folder differs from an arm; None if it is the arm's run."""
    if folder.plan.numerics_version != NUMERICS_VERSION:
        return "other numerics"
    config = folder.with_recorded_parent(arm.config)
    possible = {config_fingerprint(config.on_device(device)) for device in ("cpu", "cuda")}
    return None if folder.plan.config_fingerprint in possible else "other config"
