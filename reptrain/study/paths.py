"""The paths in a study's folder: configurations, runs, logs and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from reptrain.config import RunConfig, config_fingerprint
from reptrain.config.numerics import NUMERICS_VERSION
from reptrain.runs.folder import RunFolder


def config_path(out: Path, arm: str) -> Path:
    """The arm's resolved configuration, the input of its training process."""
    return out / "configs" / f"{arm}.yaml"


def run_path(out: Path, arm: str) -> Path:
    """The arm's run folder."""
    return out / "runs" / arm


def log_path(out: Path, arm: str) -> Path:
    """The output of the arm's training process, over all its starts."""
    return out / "logs" / f"{arm}.log"


def job_path(out: Path, node: str) -> Path:
    """The job file of the node's process (`reptrain_launcher.worker`)."""
    return out / "nodes" / f"{node}.job.json"


def lock_path(out: Path, node: str) -> Path:
    """The lock that the node's process holds."""
    return out / "nodes" / f"{node}.lock"


def result_path(out: Path, node: str) -> Path:
    """The result of a node that is no training: its output and its fingerprint."""
    return out / "nodes" / f"{node}.result.json"


def product_path(out: Path, node: str) -> Path:
    """The folder that a fine-tuning or an export writes."""
    return out / "products" / node


def questions_path(out: Path) -> Path:
    """The claims and fits, written before the first run starts."""
    return out / "questions.json"


def report_path(out: Path) -> Path:
    """The report."""
    return out / "report.html"


def is_run_of(config: RunConfig, folder: RunFolder) -> bool:
    """Whether a run folder holds this run: equal numerics version, settings and evaluations, on any store and
    device."""
    return difference(config, folder) is None


def difference(config: RunConfig, folder: RunFolder) -> Literal["other numerics", "other config"] | None:
    """How the run in a folder differs from a configuration; None if it is the same run."""
    if folder.plan.numerics_version != NUMERICS_VERSION:
        return "other numerics"
    config = folder.with_recorded_parent(config)
    possible = {config_fingerprint(config.on_device(device)) for device in ("cpu", "cuda")}
    return None if folder.plan.config_fingerprint in possible else "other config"
