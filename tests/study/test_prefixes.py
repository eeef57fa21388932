"""Which runs branch from which, at which step, and what the trunk must save for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from reptrain.config import RunConfig
from reptrain.config.load import apply_overrides, validate
from reptrain.config.scheduled import Scheduled
from reptrain.errors import ConfigError
from reptrain.plan.shared_steps import RunSteps, shared_steps
from reptrain.study import StudyConfig
from reptrain.study.build import build_graph
from reptrain.study.graph import Graph

BASE: dict[str, Any] = {
    "data": {"store": "s", "unique_tokens": 4096, "window_tokens": 64},
    "train": {"total_tokens": 16384, "batch_windows": 8},
    "schedule": {"name": "constant", "warmup_fraction": 0},
    "evaluate": {"every_fraction": 0.25},
}
LATE = {"none": 0.0, "full": 0.1, **{f"late-{s}": {"value": 0.1, "start": f"{s}%"} for s in (25, 50, 75)}}


def graph_of(tmp_path: Path, **fields: Any) -> Graph:
    return build_graph(StudyConfig(**{"name": "s", "base": BASE, **fields}), tmp_path)


def late(tmp_path: Path, **fields: Any) -> Graph:
    arms = [{"name": name, "set": {"model.dropout.residual": rate}} for name, rate in LATE.items()]
    return graph_of(tmp_path, arms=arms, **fields)


def test_late_dropout_branches_from_the_run_without_dropout(tmp_path: Path) -> None:
    nodes = late(tmp_path).by_name
    assert {name: node.branch and (node.branch.parent, node.branch.step) for name, node in nodes.items()} == {
        "none": None, "full": None, "late-25": ("none", 8), "late-50": ("none", 16), "late-75": ("none", 24),
    }  # fmt: skip
    assert [nodes[name].cluster for name in LATE] == ["none", "full", "none", "none", "none"]
    assert nodes["none"].run.checkpoint.at_steps == [8, 16, 24]
    levels = [[node.name for node in level] for level in late(tmp_path).levels()]
    assert levels == [["none", "full"], ["late-25", "late-50", "late-75"]]


def test_branches_do_not_change_fingerprints_and_can_be_switched_off(tmp_path: Path) -> None:
    shared, apart = late(tmp_path), late(tmp_path, share_prefixes=False)
    assert {n.name: n.fingerprint for n in shared.nodes} == {n.name: n.fingerprint for n in apart.nodes}
    assert not any(node.branch for node in apart.nodes)
    assert {n.name: n.cluster for n in shared.nodes} == {n.name: n.cluster for n in apart.nodes}


def test_seeds_share_nothing(tmp_path: Path) -> None:
    nodes = late(tmp_path, seeds=[0, 1]).by_name
    branch = nodes["late-25.seed-1"].branch
    assert branch is not None and branch.parent == "none.seed-1"


def test_a_constant_rate_shares_with_every_budget(tmp_path: Path) -> None:
    nodes = graph_of(tmp_path, axes={"train.total_tokens": [4096, 16384, 8192]}).by_name
    branches = {name.rpartition("-")[2]: node.branch for name, node in nodes.items()}
    assert branches["16384"] is None
    assert [branches[b].step for b in ("4096", "8192")] == [8, 16]  # type: ignore[union-attr]
    assert {node.cluster for node in nodes.values()} == {"total_tokens-16384"}
    # The trunk evaluates where the shorter runs would: at a quarter of each.
    assert nodes["total_tokens-16384"].run.evaluate.at_steps == [2, 4, 6, 12]


def test_wsd_cooldowns_branch_where_the_decay_begins(tmp_path: Path) -> None:
    study = {"set": {"schedule.name": "wsd"}, "axes": {"schedule.decay_fraction": [0.125, 0.25, 0.5]}}
    nodes = graph_of(tmp_path, **study).by_name
    steps = {name.rpartition("-")[2]: node.branch and node.branch.step for name, node in nodes.items()}
    assert steps == {"0.125": None, "0.25": 24, "0.5": 16}


def test_a_chain_of_branches_evaluates_for_the_last_one(tmp_path: Path) -> None:
    """None saves for the second, which saves for the third; both evaluate where the third does."""
    rates = [0.0, {"value": 0.1, "start": "50%"}]
    arms = [
        {"name": "a", "set": {"model.dropout.residual": 0.0}},
        {"name": "b", "set": {"model.dropout.residual": rates[1]}},
        {
            "name": "c",
            "set": {"model.dropout": {"residual": rates[1], "mlp": {"value": 0.1, "start": "75%"}}},
        },
    ]
    arms[2]["set"]["evaluate.every_fraction"] = 0.125
    nodes = graph_of(tmp_path, arms=arms).by_name
    branch = nodes["c"].branch
    assert branch is not None and (branch.parent, branch.step) == ("b", 24)
    assert nodes["b"].run.evaluate.at_steps == [4, 12, 20]
    assert nodes["a"].run.evaluate.at_steps == [4, 12]
    assert nodes["c"].cluster == "a"


def config(*overrides: str) -> RunConfig:
    return validate(RunConfig, apply_overrides(BASE, overrides))


def steps(*overrides: str) -> RunSteps:
    return RunSteps(config(*overrides), {"data": 4096})


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ("seed=1", 0),
        ("seeds.noise=1", 0),
        ("seeds.weights=1", 0),
        ("data.subset_seed=1", 0),
        ("data.order=mixed", 0),
        ("train.batch_windows=16", 0),
        ("train.on_nonfinite=skip", 0),
        ("evaluate.patience=2", 0),
        ("optimizer.lr=0.5", 0),
        ("schedule.name=cosine", 0),
        ("average={name: ema}", 0),
        ("model.num_layers=3", 0),
        ("regularize.z_loss={value: 0.1, start: 10steps}", 10),
        ("optimizer.weight_decay={value: 0.2, before: 0.1, start: 50%}", 16),
        ("optimizer.weight_decay={value: 0.2, before: 0.1, over: 50%}", 1),
        ("model.dropout.mlp={value: 0.1, start: 1epochs}", 8),
        ("train.total_tokens=8192", 16),
        # The last batch of the shorter run is not full.
        ("train.total_tokens=8000", 15),
        ("train.micro_batch_windows=4", 32),
        ("evaluate.max_windows=7", 32),
    ],
)
def test_shared_steps_end_where_any_resolved_function_differs(change: str, shared: int) -> None:
    assert shared_steps(steps(), steps(change)) == shared_steps(steps(change), steps()) == shared


DISTILLED = "distill={teacher: /teacher, weight: 0.5}"


def scheduled_keys(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Scheduled]]:
    """Every setting of a run that may be scheduled, by dotted key."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Scheduled):
            yield prefix + name, value
        elif isinstance(value, BaseModel):
            yield from scheduled_keys(value, f"{prefix}{name}.")


def test_every_scheduled_setting_ends_the_shared_steps_where_it_changes() -> None:
    scheduled = dict(scheduled_keys(config(DISTILLED)))
    assert {"distill.weight", "model.dropout.path", "optimizer.weight_decay"} <= scheduled.keys()
    for key, value in scheduled.items():
        late = f"{key}={{value: 0.25, before: {value.value}, start: 10steps}}"
        assert shared_steps(steps(DISTILLED), steps(DISTILLED, late)) == 10, key
        # A share of the run is another step under another budget.
        half = f"{key}={{value: 0.25, before: {value.value}, start: 50%}}"
        short = "train.total_tokens=8192"
        assert shared_steps(steps(DISTILLED, half), steps(DISTILLED, half, short)) == 8, key


_SCHEDULES = st.fixed_dictionaries(
    {"value": st.sampled_from([0.1, 0.2]), "before": st.sampled_from([0.0, 0.1])},
    optional={
        "start": st.sampled_from(["0%", "10steps", "33%", "50%", "1epochs", "1000tokens", "100%"]),
        "over": st.sampled_from(["5steps", "7%", "60%", "1epochs", "500tokens"]),
    },
)


@given(_SCHEDULES, _SCHEDULES)
@settings(max_examples=60, deadline=None)
def test_shared_steps_of_schedules_are_those_found_step_by_step(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    try:
        first, second = (steps(f"optimizer.weight_decay={json.dumps(value)}") for value in (one, other))
    except ConfigError:  # start and over in different units
        assume(False)
    same = [first.settings(step) == second.settings(step) for step in range(32)]
    assert shared_steps(first, second) == (same.index(False) if False in same else 32)


def test_schedules_of_a_very_long_run_share_their_first_steps() -> None:
    budget = "train.total_tokens=2**40"
    late = steps(budget, "model.dropout.mlp={value: 0.1, start: 25%}")
    assert shared_steps(steps(budget), late) == steps(budget).steps.num_steps // 4


def test_mixed_epochs_share_nothing_with_another_budget() -> None:
    order = "data.order=mixed"
    assert shared_steps(steps(order), steps(order, "train.total_tokens=8192")) == 0
    assert shared_steps(steps(order), steps(order, "model.dropout.mlp={value: 0.1, start: 50%}")) == 16


@pytest.mark.parametrize(
    ("cut", "order"),
    [
        ("fixed", "reshuffle"),
        ("fixed", "mixed"),
        ("shifted", "reshuffle"),
        ("shifted", "mixed"),
        ("repacked", "same"),
    ],
)
def test_tokens_of_steps_are_those_of_the_plan(cut: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (f"data.cut={cut}", f"data.order={order}", "train.total_tokens=9999")
    listed = steps(*overrides)
    found = [listed.settings(step) for step in range(listed.steps.num_steps)]
    monkeypatch.setattr("reptrain.plan.shared_steps._MOST_WINDOWS", 0)
    counted = steps(*overrides)
    assert [counted.settings(step) for step in range(counted.steps.num_steps)] == found


def test_runs_distilled_from_their_previous_cycle_share_no_steps() -> None:
    cyclic = ("schedule.name=cyclic", "schedule.cycles=2")
    late = "model.dropout.residual={value: 0.1, start: 75%}"
    assert shared_steps(steps(*cyclic), steps(*cyclic, late)) > 0
    itself = (*cyclic, "distill.weight=0.5")
    assert shared_steps(steps(*itself), steps(*itself, late)) == 0
