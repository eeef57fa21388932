"""Runs that take over the first steps of another: equal bit for bit to the unbroken run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reptrain.config import RunConfig
from reptrain.config.schema import BranchConfig
from reptrain.errors import ResumeError
from reptrain.plan.shared_steps import RunSteps, shared_steps
from reptrain.runs import RunFolder
from reptrain.runs.ledger import LedgerRecord
from reptrain.training.loop import train
from reptrain.training.rebuilt_inputs import audit_inputs

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = ["schedule.name=constant", "schedule.warmup_fraction=0", "evaluate.every_fraction=0.5"]
LATE = "model.dropout.residual={value: 0.1, start: 50%}"
TIMES = ("step_ms", "tokens_per_s", "tokens_per_s_per_device")


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


@pytest.mark.parametrize(
    ("trunk", "branch", "shared"),
    [
        # Late dropout; the same run stopped at a smaller budget under a constant rate, in mid-batch.
        (["train.total_tokens=1epochs"], ["train.total_tokens=1epochs", LATE], 7),
        (["train.total_tokens=1epochs"], ["train.total_tokens=0.5epochs"], 6),
        # All of its 6 full batches are a part of the trunk.
        (["train.total_tokens=1epochs"], ["train.total_tokens=2304"], 6),
    ],
)
def test_branch_equals_the_unbroken_run_bit_for_bit(
    tiny: Any, tmp_path: Path, trunk: list[str], branch: list[str], shared: int
) -> None:
    long = tiny(*COMMON, *trunk)
    short = tiny(*COMMON, *branch)
    assert shared_steps(steps_of(long), steps_of(short)) == shared
    # The branch evaluates at other steps than the trunk.
    trunk_config = long.model_copy(
        update={
            "checkpoint": long.checkpoint.model_copy(update={"at_steps": [shared]}),
            "evaluate": long.evaluate.model_copy(update={"at_steps": [3, 4, 6]}),
        }
    )
    train(trunk_config, tmp_path / "trunk")
    train(short, tmp_path / "unbroken")
    branched = short.model_copy(update={"branch": BranchConfig(run=str(tmp_path / "trunk"), step=shared)})
    train(branched, tmp_path / "branch")
    hold_equal(tmp_path / "branch", tmp_path / "unbroken")
    assert audit_inputs(tmp_path / "branch").exact
    assert json.loads((tmp_path / "branch" / "branch.json").read_text())["step"] == shared
    events = [record.event for record in RunFolder.open(tmp_path / "branch").events.records()]
    assert events == ["branched", "resumed", "done"]


def test_branch_without_a_checkpoint_trains_from_the_start(tiny: Any, tmp_path: Path) -> None:
    config = tiny(*COMMON, "train.total_tokens=1epochs")
    branched = config.model_copy(update={"branch": BranchConfig(run=str(tmp_path / "none"), step=2)})
    train(branched, tmp_path / "branch")
    train(config, tmp_path / "unbroken")
    hold_equal(tmp_path / "branch", tmp_path / "unbroken")


@pytest.mark.parametrize("change", ["seed=1", "optimizer.lr=0.5", "schedule.name=cosine", "data.order=same"])
def test_branch_is_refused_from_a_run_that_differs_before_it(tiny: Any, tmp_path: Path, change: str) -> None:
    config = tiny(*COMMON, "train.total_tokens=1epochs", "checkpoint.at_steps=[2]")
    train(config, tmp_path / "trunk")
    other = tiny(*COMMON, "train.total_tokens=1epochs", change)
    branched = other.model_copy(update={"branch": BranchConfig(run=str(tmp_path / "trunk"), step=2)})
    with pytest.raises(ResumeError, match="must be the same run for the first 2 steps"):
        train(branched, tmp_path / "branch")
