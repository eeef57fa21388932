"""Runs that take over the first steps of another: equal bit for bit to the unbroken run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reptrain.config import RunConfig
from reptrain.config.sections import BranchConfig
from reptrain.errors import ResumeError
from reptrain.plan.shared_steps import RunSteps, shared_steps
from reptrain.runs import RunFolder
from reptrain.runs.ledger import LedgerRecord
from reptrain.training.loop import train
from reptrain.training.rebuilt_inputs import audit_inputs

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = [
    *("train.total_tokens=1epochs", "schedule.name=constant", "schedule.warmup_fraction=0"),
    "evaluate.every_fraction=0.5",
]
TIMES = ("step_ms", "tokens_per_s", "tokens_per_s_per_device", "rank_ms")


def steps_of(config: RunConfig) -> RunSteps:
    return RunSteps(config, {name: source.unique_tokens or 0 for name, source in config.sources.items()})


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()).glob("state-*")
    return load_file(file)


def untimed(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def attempts(run: Path) -> list[LedgerRecord]:
    """The steps in a ledger, without the chain: a branch has its parent's checkpoints in between."""
    records = RunFolder.open(run).ledger.records()
    return [record.model_copy(update={"previous": None}) for record in records]


def hold_equal(one: Path, other: Path) -> None:
    assert attempts(one) == attempts(other)
    assert untimed(one) == untimed(other)
    mine, others = weights(one), weights(other)
    assert mine.keys() == others.keys()
    assert all(torch.equal(mine[name], others[name]) for name in mine)


@pytest.fixture(scope="module")
def trunk(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 14 steps under a constant rate, which saves and evaluates where the branches below begin."""
    path = tmp_path_factory.mktemp("trunk") / "trunk"
    train(tiny(*COMMON, "checkpoint.at_steps=[2,6,7]", "evaluate.at_steps=[3,4,6]"), path)
    return path


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ("model.dropout.residual={value: 0.1, start: 50%}", 7),
        # The same run stopped at a smaller budget, in mid-batch; and after 6 full batches.
        ("train.total_tokens=0.5epochs", 6),
        ("train.total_tokens=2304", 6),
    ],
)
def test_branch_equals_the_unbroken_run_bit_for_bit(
    tiny: Any, tmp_path: Path, trunk: Path, change: str, shared: int
) -> None:
    config = tiny(*COMMON, change)
    assert shared_steps(steps_of(tiny(*COMMON)), steps_of(config)) == shared
    train(config, tmp_path / "unbroken")
    branch, record = tmp_path / "branch", BranchConfig(run=str(trunk), step=shared)
    train(config.model_copy(update={"branch": record}), branch)
    hold_equal(branch, tmp_path / "unbroken")
    assert audit_inputs(branch).exact
    assert json.loads((branch / "branch.json").read_text())["step"] == shared
    events = [record.event for record in RunFolder.open(branch).events.records()]
    assert events == ["branched", "resumed", "done"]


def test_branch_without_a_checkpoint_trains_from_the_start(tiny: Any, tmp_path: Path, trunk: Path) -> None:
    branch = BranchConfig(run=str(tmp_path / "none"), step=2)
    train(tiny(*COMMON).model_copy(update={"branch": branch}), tmp_path / "branch")
    assert attempts(tmp_path / "branch") == attempts(trunk)
    # Killed after its last checkpoint, before it was marked as done.
    RunFolder.open(tmp_path / "branch").set_status("running")
    assert train(tiny(*COMMON), tmp_path / "branch").state == "done"
    assert audit_inputs(tmp_path / "branch").exact


@pytest.mark.parametrize("change", ["seed=1", "optimizer.lr=0.5", "schedule.name=cosine", "data.order=same"])
def test_branch_is_refused_from_a_run_that_differs_before_it(
    tiny: Any, tmp_path: Path, trunk: Path, change: str
) -> None:
    branch = BranchConfig(run=str(trunk), step=2)
    with pytest.raises(ResumeError, match="must be the same run for the first 2 steps"):
        train(tiny(*COMMON, change).model_copy(update={"branch": branch}), tmp_path / "branch")


@pytest.mark.parametrize(("key", "words"), [("distill.teacher", "of its teacher"), ("init_from", "initial")])
def test_branch_is_refused_from_a_run_with_other_weights_at_the_same_path(
    key: str, words: str, tiny: Any, tmp_path: Path, trunk: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(trunk, other)
    settings = [*COMMON, f"{key}={other}", "train.total_tokens=384", "checkpoint.at_steps=[1]"]
    train(tiny(*settings), tmp_path / "run")
    branch = BranchConfig(run=str(tmp_path / "run"), step=1)
    same = tiny(*settings).model_copy(update={"branch": branch})
    train(same, tmp_path / "same")
    events = [record.event for record in RunFolder.open(tmp_path / "same").events.records()]
    assert events[0] == "branched"
    shutil.rmtree(other)
    train(tiny(*COMMON, "train.total_tokens=384", "seed=1"), other)
    with pytest.raises(ResumeError, match=words):
        train(same, tmp_path / "branch")
