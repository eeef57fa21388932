"""Whether a node is done, from its run folder or its result file alone."""

from __future__ import annotations

from pathlib import Path

from reptrain.config import RunConfig
from reptrain.files import read_small
from reptrain.reading import parse_json
from reptrain.runs.folder import RunFolder
from reptrain.study.graph import Node
from reptrain.study.paths import is_run_of, result_path, run_path
from reptrain.study.preflight import Stores


def is_done(node: Node, out: Path, stores: Stores) -> bool:
    """Whether a node is done in a study's folder.

    Args:
        node: The node.
        out: The study's folder.
        stores: The open stores of all trainings by path.
    """
    if node.config is None:
        return stored_fingerprint(result_path(out, node.name)) == node.fingerprint
    run = run_path(out, node.name)
    if run_is_done(node.config, run, stores):
        return True
    # A tuning run that diverged has answered its question.
    is_trial = node.role == "tune" and (run / "status.json").exists()
    return is_trial and has_diverged(RunFolder.open(run)) and is_run_of(node.config, RunFolder.open(run))


def is_done_by_records(node: Node, out: Path) -> bool:
    """`is_done` without the stores: whichever store the run has trained on."""
    if node.config is None:
        return stored_fingerprint(result_path(out, node.name)) == node.fingerprint
    run = run_path(out, node.name)
    if not (run / "status.json").exists():
        return False
    folder = RunFolder.open(run)
    has_ended = folder.status().state == "done" or (node.role == "tune" and has_diverged(folder))
    return has_ended and is_run_of(node.config, folder)


def has_diverged(folder: RunFolder) -> bool:
    """Whether a run ended because its loss or gradient was no longer finite."""
    status = folder.status()
    return status.state == "failed" and (status.reason or "").startswith("diverged")


def run_is_done(config: RunConfig, run: Path, stores: Stores) -> bool:
    """Whether a run folder holds this run on these stores, finished."""
    if not (run / "status.json").exists():
        return False
    folder = RunFolder.open(run)
    if folder.status().state != "done" or not is_run_of(config, folder):
        return False
    trained_on = [source.store_fingerprint for source in folder.plan.sources]
    return trained_on == [stores[source.store].fingerprint for source in config.sources.values()]


def stored_fingerprint(path: Path) -> str | None:
    """The fingerprint in a result file; None if there is no readable one."""
    try:
        record = parse_json(read_small(path))
    except (OSError, ValueError):
        return None
    found = record.get("fingerprint") if isinstance(record, dict) else None
    return found if isinstance(found, str) else None
