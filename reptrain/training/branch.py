"""Runs that begin with the first steps of another run (`branch` in the configuration).

The branch takes over the checkpoint, ledger and metrics of the other run at the shared step. From then on it
is a run of its own: the same, bit for bit, as if it had trained these steps itself.
"""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path

from reptrain import checkpoint
from reptrain.config import RunConfig
from reptrain.config.base import PathText
from reptrain.config.sections import BranchConfig
from reptrain.errors import ReptrainError, ResumeError
from reptrain.files import write_atomically
from reptrain.plan.marks import evaluation_steps
from reptrain.plan.shared_steps import RunSteps, shared_steps
from reptrain.runs.folder import RunFolder
from reptrain.runs.parent import read_parent
from reptrain.runs.records import FrozenRecord
from reptrain.training.recorder import print_line
from reptrain.training.setup import Data

BRANCH_FILE = "branch.json"


class BranchRecord(FrozenRecord):
    """`branch.json`: where the first steps of a run were trained."""

    run: PathText
    """Folder of that run."""
    step: int
    """Number of shared steps."""
    config_fingerprint: str
    """Config fingerprint of that run."""


def begin_branch(config: RunConfig, branch: BranchConfig, folder: RunFolder, data: Data) -> None:
    """Take over the shared steps, unless the run has begun. Without a checkpoint there it trains them itself.

    Args:
        config: The run.
        branch: The other run and the shared steps.
        folder: This run's folder, locked.
        data: This run's plan.

    Raises:
        ResumeError: If the two runs differ within the shared steps.
    """
    if any(folder.checkpoints.glob("step-*")) or folder.ledger.end():
        return
    source = Path(branch.run)
    path = source / "checkpoints" / f"step-{branch.step}"
    manifest = checkpoint.intact_manifest(path) if path.exists() else "no such checkpoint"
    if isinstance(manifest, str):
        reason = f"{path}: {manifest}; training from the start"
        print_line(f"WARNING: {reason}")
        folder.note("branched", reason, step=0)
        return
    parent = RunFolder.open(source)
    _refuse_another(config, folder, parent, data)
    ledger = (path / folder.ledger.path.name).read_bytes()
    wanted = evaluation_steps(config.evaluate, data.steps.num_steps)
    metrics = _own_evaluations((path / folder.metrics.path.name).read_bytes(), wanted)
    record = BranchRecord(
        run=str(source.resolve()), step=branch.step, config_fingerprint=parent.plan.config_fingerprint
    )
    write_atomically(folder.path / BRANCH_FILE, [record.model_dump_json(indent=2), "\n"])
    write_atomically(folder.ledger.path, ledger)
    write_atomically(folder.metrics.path, metrics)
    records = {folder.ledger.path.name: ledger, folder.metrics.path.name: metrics}
    checkpoint.adopt(path, manifest, folder.checkpoints, records)
    folder.note("branched", f"from {record.run}", step=branch.step)


def _initial_weights(run: RunFolder) -> str | None:
    """Fingerprint of the weights of `init_from`; None without it."""
    parent = read_parent(run.path)
    return None if parent is None else parent.weights


def _refuse_another(config: RunConfig, folder: RunFolder, parent: RunFolder, data: Data) -> None:
    """Refuse to branch from a run that is not the same within the shared steps."""
    branch = config.branch
    assert branch is not None
    theirs, mine = parent.plan, data.run_plan
    if theirs.numerics_version != mine.numerics_version:
        shared, got = 0, f"a run of numerics_version {theirs.numerics_version}"
    elif [s.subset_fingerprint for s in theirs.sources] != [s.subset_fingerprint for s in mine.sources]:
        shared, got = 0, "a run on another store or subset"
    elif theirs.teacher != mine.teacher:
        shared, got = 0, "a run with other weights of its teacher"
    elif _initial_weights(parent) != _initial_weights(folder):
        shared, got = 0, "a run with other initial weights"
    else:
        try:
            both = [
                RunSteps(one, {source.name: source.unique_tokens for source in plan.sources})
                for one, plan in ((parent.config, theirs), (config, mine))
            ]
            shared = shared_steps(*both)
        except ReptrainError:
            shared = 0
        got = f"a run that shares {shared} steps with this one"
    if shared < branch.step:
        raise ResumeError(
            f"branch.run {branch.run}",
            got=got,
            rule=f"must be the same run for the first {branch.step} steps",
            remedy="Lower branch.step, or leave branch out.",
        )


def _own_evaluations(metrics: bytes, steps: Set[int]) -> bytes:
    """The metrics without evaluations at which this run would not have evaluated."""
    kept = []
    for line in metrics.splitlines(keepends=True):
        record = json.loads(line)
        if record["kind"] != "valid" or record["step"] == 0 or record["step"] in steps:
            kept.append(line)
    return b"".join(kept)
