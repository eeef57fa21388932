"""Named arms, constraints, seeds, tuning, and commands on runs, as a graph."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from reptrain.cli import app
from reptrain.config import RunConfig
from reptrain.errors import ConfigError, StudyError
from reptrain.sizes import count_parameters, train_flops_per_window
from reptrain.study import StudyConfig, arms
from reptrain.study.build import build_graph
from reptrain.study.schema import load_study
from reptrain.study.sections import ThenKind
from reptrain.study.tuning import beyond, tuned_by

BASE: dict[str, Any] = {
    "data": {"store": "s", "unique_tokens": 4096, "window_tokens": 64},
    "model": {"d_model": 64, "num_layers": 2, "num_heads": 2, "d_ff": 128, "vocab_size": 512},
    "train": {"total_tokens": 16384, "batch_windows": 8},
}


def study_of(**fields: Any) -> StudyConfig:
    return StudyConfig(**{"name": "s", "base": BASE, **fields})


def configs(study: StudyConfig) -> dict[str, RunConfig]:
    return {arm.name: arm.config for arm in arms(study)}


def test_named_arms_are_combined_with_axes_and_have_axes_and_seeds_of_their_own() -> None:
    study = study_of(
        set={"train": {"total_tokens": 8192}},
        axes={"data.unique_tokens": [2048, 4096]},
        arms=[
            {"name": "dense"},
            {"name": "deep", "set": {"model": {"num_layers": 4}}, "seeds": [7]},
            {"name": "short", "axes": {"train.total_tokens": [1024], "data.unique_tokens": [1024]}},
        ],
        seeds=[0, 1],
    )
    found = configs(study)
    assert [*found] == [
        "dense.unique_tokens-2048.seed-0", "dense.unique_tokens-2048.seed-1",
        "dense.unique_tokens-4096.seed-0", "dense.unique_tokens-4096.seed-1",
        "deep.unique_tokens-2048.seed-7", "deep.unique_tokens-4096.seed-7",
        "short.unique_tokens-1024.total_tokens-1024.seed-0",
        "short.unique_tokens-1024.total_tokens-1024.seed-1",
    ]  # fmt: skip
    assert found["deep.unique_tokens-4096.seed-7"].model.num_layers == 4  # type: ignore[union-attr]
    values = arms(study)[0].values
    assert values == {
        "entry": "dense", "data.unique_tokens": 2048, "model.num_layers": 2, "train.total_tokens": 8192,
    }  # fmt: skip


def test_a_seed_changes_subset_order_noise_weights_and_dropout_together() -> None:
    config = configs(study_of(seeds=[3, 4]))["seed-4"]
    assert (config.seed, config.data.subset_seed) == (4, 4)
    assert {config.seed_of(part) for part in ("order", "noise", "weights", "dropout")} == {4}
    # A seed that the file sets itself stays.
    kept = configs(study_of(set={"data.subset_seed": 9}, seeds=[3, 4]))["seed-4"]
    assert (kept.seed, kept.data.subset_seed) == (4, 9)


@pytest.mark.parametrize("part", ["subset", "weights", "dropout"])
def test_each_part_of_a_seed_can_be_switched_off(part: str) -> None:
    config = configs(study_of(seeds=[3, 4], seed_changes={part: False}))["seed-4"]
    own = {"subset": config.data.subset_seed} | {
        name: config.seed_of(name)  # type: ignore[arg-type]
        for name in ("order", "noise", "weights", "dropout")
    }
    assert own == {name: 0 if name == part else 4 for name in own}


def test_noise_cannot_be_switched_off_without_the_order() -> None:
    with pytest.raises(ValueError, match="noise false needs order false"):
        study_of(seeds=[1], seed_changes={"noise": False})
    config = configs(study_of(seeds=[3, 4], seed_changes={"noise": False, "order": False}))["seed-4"]
    assert (config.seed_of("noise"), config.seed_of("order"), config.seed_of("weights")) == (0, 0, 4)


def test_constraints_match_flops_and_parameters_to_an_arm_of_the_same_axes() -> None:
    moe = {"model.moe": {"num_experts": 4, "group_windows": 1}}
    study = study_of(
        axes={"model.num_layers": [2, 4]},
        arms=[{"name": "dense"}, {"name": "moe", "set": moe}, {"name": "wide"}],
        constraints=[
            {"equal": "flops", "to": "dense", "where": {"arm": "moe"}, "vary": "d_ff", "tolerance": 0.02},
            {"equal": "total-params", "to": "moe", "where": {"arm": "wide"}, "tolerance": 0.05},
        ],
    )
    found = configs(study)
    for layers in (2, 4):
        dense, sparse, wide = (found[f"{name}.num_layers-{layers}"] for name in ("dense", "moe", "wide"))
        flops = [train_flops_per_window(c.model, 512, c.example_shape) for c in (dense, sparse)]
        assert flops[1] == pytest.approx(flops[0], rel=0.02)
        parameters = [count_parameters(c.model, 512).total for c in (sparse, wide)]
        assert parameters[1] == pytest.approx(parameters[0], rel=0.05)


def test_constraints_equal_tokens_and_drop() -> None:
    study = study_of(
        axes={"data.unique_tokens": [1024, 4096]},
        arms=[
            {"name": "four", "set": {"train.total_tokens": "4epochs"}},
            {"name": "one", "set": {"train.total_tokens": "1epochs"}},
        ],
        constraints=[
            {"equal": "tokens", "to": "four"},
            {"drop": {"arm": "one", "data.unique_tokens": "2**10"}},
            {"drop": {"steps_per_epoch": {"under": 8}, "arm": ["four"]}},
        ],
    )
    found = configs(study)
    assert [*found] == ["four.unique_tokens-4096", "one.unique_tokens-4096"]
    assert found["one.unique_tokens-4096"].train.total_tokens.tokens == 16384  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"constraints": [{"equal": "flops", "to": "moe"}]}, "0 arms for"),
        ({"constraints": [{"drop": {"data.sise": 1}}]}, "data.sise"),
        ({"constraints": [{"drop": {}}]}, "must have arms"),
        ({"axes": {"data.unique_tokes": [1]}}, "data.unique_tokes: must be a known key.*Did you mean"),
        ({"arms": [{"name": "a", "set": {"modle.d_ff": 8}}]}, "arm a: modle: must be a known key"),
        ({"then": [{"name": "x", "do": "evaluate", "of": "y"}]}, "of: must name another entry.*'y'"),
        (
            {"then": [{"name": "x", "do": "export", "of": "y"}, {"name": "y", "do": "export", "of": "x"}]},
            "x of y of x",
        ),
        (
            {"then": [{"name": "x", "do": "export", "where": {"data.unique_tokens": 5}}]},
            "must select at least one run",
        ),
        ({"then": [{"name": "x", "do": "finetune", "task": "none.yaml"}]}, "must be a task.*none.yaml"),
        ({"then": [{"name": "x", "do": "evaluate"}], "arms": [{"name": "x.base"}, {"name": "x"}]}, None),
        (
            {"then": [{"name": "x", "do": "evaluate"}], "arms": [{"name": "x.a"}, {"name": "a"}]},
            "must have unique node names",
        ),
    ],
)
def test_a_study_that_cannot_be_is_refused(tmp_path: Path, fields: dict[str, Any], error: str | None) -> None:
    if error is None:
        assert build_graph(study_of(**fields), tmp_path).nodes
        return
    with pytest.raises(StudyError, match=error):
        build_graph(study_of(**fields), tmp_path)


CONTRAST = {"treatment": {"entry": "a"}, "control": {"entry": "b"}, "free": ["model.d_ff"]}
CLAIM = {"name": "c", "statement": "s", "contrast": CONTRAST}
TWO = {"arms": [{"name": "a"}, {"name": "b", "set": {"model.d_ff": 64}}], "seeds": [0, 1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({}, None),
        ({"metric": "loss_reprot_final_nats"}, "Did you mean loss_report_final_nats"),
        (
            {"contrast": {"treatment": {"entry": "c"}, "control": {"entry": "b"}}},
            "treatment.*must select an arm",
        ),
        ({"contrast": {"treatment": "a.seed-0", "control": "b"}}, "The arms are a, b"),
        ({"contrast": {"treatment": {"model.d_model": 64}, "control": "b"}}, "varied keys or measures"),
        ({"seeds": 6}, "at least the 6 seeds"),
        ({"metric": "status"}, "must use columns of numbers here, but got status"),
        ({"contrast": CONTRAST | {"free": []}}, "must compare runs.* always differ in model.d_ff"),
        ({"contrast": CONTRAST | {"treatment": {"arm": "b"}}}, "different arms.* but got b on both sides"),
        ({"contrast": CONTRAST | {"treatment": {"entry": ["a", "b"]}}}, "but got b on both sides"),
        # What only finished runs have is not known yet.
        ({"contrast": CONTRAST | {"control": {"parameters_total": 9}, "free": []}}, None),
    ],
)
def test_claims_must_name_arms_columns_and_enough_seeds(
    tmp_path: Path, change: dict[str, Any], error: str | None
) -> None:
    study = study_of(**TWO, claims=[CLAIM | change])
    if error is None:
        assert build_graph(study, tmp_path).nodes
        return
    with pytest.raises(StudyError, match=error):
        build_graph(study, tmp_path)


def test_a_claim_must_free_the_rate_that_is_tuned_for_each_of_its_arms(tmp_path: Path) -> None:
    tune = {"axes": {"optimizer.lr": [1e-3, 2e-3, 4e-3]}, "seeds": [90]}
    with pytest.raises(StudyError, match=r"always differ in optimizer\.lr"):
        build_graph(study_of(**TWO, tune=tune, claims=[CLAIM]), tmp_path)
    free = CLAIM | {"contrast": CONTRAST | {"free": ["model.d_ff", "optimizer.lr"]}}
    assert build_graph(study_of(**TWO, tune=tune, claims=[free]), tmp_path).nodes
    # One rate for both arms is the same on both sides.
    shared = study_of(**TWO, tune=tune | {"per": ["objective"]}, claims=[CLAIM])
    assert build_graph(shared, tmp_path).nodes


FIT = {"name": "f", "law": "power-constant", "columns": {"x": "consumed_tokens"}}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({}, "must have more arms than the 3 parameters.* but got 2 arms"),
        ({"where": {"entry": "a"}}, "but got 1 arm\\."),
        ({"law": "power", "where": {"role": "tune"}}, None),
        ({"columns": {"y": "consumed_tokens"}}, "must be among x, but got y"),
        ({"columns": {}}, "must name a column for each variable"),
        ({"columns": {"x": "status"}}, "must use columns of numbers here"),
        ({"metric": "measure"}, "must use columns of numbers here"),
    ],
)
def test_a_fit_must_have_columns_and_enough_arms(
    tmp_path: Path, change: dict[str, Any], error: str | None
) -> None:
    study = study_of(**TWO, fits=[FIT | change])
    if error is None:
        assert build_graph(study, tmp_path).nodes
        return
    with pytest.raises(StudyError, match=error):
        build_graph(study, tmp_path)


def test_then_makes_nodes_over_runs_seeds_and_other_nodes(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("name: t\n")
    study = study_of(
        **TWO,
        then=[
            {"name": "scores", "do": "evaluate", "of": "tuned", "options": {"max-windows": 8}},
            {"name": "tuned", "do": "finetune", "task": str(tmp_path / "task.yaml"), "where": {"arm": "a"}},
            {"name": "k", "do": "ensemble", "options": {"set": ["report"]}},
        ],
    )
    graph = build_graph(study, tmp_path)
    nodes = graph.by_name
    assert nodes["k.a"].inputs == tuple(f"a.seed-{seed}" for seed in range(5))
    assert nodes["scores.tuned.a.seed-3"].inputs == ("tuned.a.seed-3",)
    assert nodes["tuned.a.seed-3"].inputs == ("a.seed-3",)
    assert "tuned.b.seed-0" not in nodes
    assert [len(level) for level in graph.levels()] == [10, 7, 5]
    # Another option is another node, and so is another input.
    other = study.model_copy(
        update={"then": [study.then[0].model_copy(update={"options": {}}), *study.then[1:]]}
    )
    changed = build_graph(other, tmp_path).by_name
    differing = {name for name, node in changed.items() if node.fingerprint != nodes[name].fingerprint}
    assert differing == {f"scores.tuned.a.seed-{seed}" for seed in range(5)}
    (tmp_path / "task.yaml").write_text("name: u\n")
    assert (
        build_graph(study, tmp_path).by_name["tuned.a.seed-0"].fingerprint
        != nodes["tuned.a.seed-0"].fingerprint
    )


def test_every_kind_of_then_is_a_command() -> None:
    kinds = {*get_args(ThenKind)} - {"ensemble"}
    assert kinds <= typer.main.get_command(app).commands.keys()


def test_a_task_is_relative_to_the_study_file(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("name: t\n")
    (tmp_path / "s.yaml").write_text(
        f"base: {BASE}\nthen: [{{name: x, do: finetune, task: task.yaml}}]\n".replace("'", '"')
    )
    assert load_study(tmp_path / "s.yaml").then[0].task == str(tmp_path / "task.yaml")


TUNED = {
    "axes": {"data.unique_tokens": [1024, 4096]},
    "arms": [{"name": "a"}, {"name": "b", "set": {"model.d_ff": 64}}],
    "seeds": [0, 1],
    "tune": {"axes": {"optimizer.lr": [1e-3, 2e-3, 4e-3]}, "seeds": [90, 91]},
}


def loss_with_best(best: dict[str, float]) -> Any:
    """A loss that is lowest at a rate which depends on the arm."""

    def loss(config: RunConfig, name: str) -> float:
        entry = name.split(".")[1]
        return 5 + abs(math.log(config.optimizer.lr / best[entry]))

    return loss


def test_tuning_gives_every_group_the_same_runs_and_takes_the_best() -> None:
    study = study_of(**TUNED)
    unresolved, groups = tuned_by(study, lambda config, name: None)
    assert [(group.name, len(group.trials), group.best) for group in groups] == [
        ("a", 6, None),
        ("b", 6, None),
    ]
    # The arms of a group do not split by their data; their tuning seeds are their own.
    assert {trial.config.seed for group in groups for trial in group.trials} == {90, 91}
    assert len(unresolved) == 8
    found, _ = tuned_by(study, loss_with_best({"a": 2e-3, "b": 2.1e-3}))
    assert {arm.config.optimizer.lr for arm in found} == {2e-3}
    # The names of runs do not depend on what is tuned.
    assert [arm.name for arm in found] == [arm.name for arm in unresolved]


def test_tuning_extends_a_range_whose_edge_is_best() -> None:
    study = study_of(**TUNED)
    found, groups = tuned_by(study, loss_with_best({"a": 2e-3, "b": 1.5e-2}))
    lr = {arm.point.entry.name: arm.config.optimizer.lr for arm in found}
    assert lr == {"a": 2e-3, "b": 1.6e-2}
    assert [len(group.trials) for group in groups] == [6, 12] and groups[1].at_edge == ()
    _, groups = tuned_by(study, loss_with_best({"a": 2e-3, "b": 1.0}))
    assert groups[1].at_edge == ("optimizer.lr",) and len(groups[1].trials) == 12


def test_tuning_counts_divergence_as_the_worst_and_needs_one_finite_loss() -> None:
    study = study_of(**TUNED)

    def loss(config: RunConfig, name: str) -> float:
        return math.inf if config.optimizer.lr > 3e-3 or "b." in name else 6.0 - config.optimizer.lr

    found, groups = tuned_by(study, loss)
    assert {arm.config.optimizer.lr for arm in found if arm.point.entry.name == "a"} == {2e-3}
    assert groups[1].best is None


def test_tuning_at_some_values_serves_the_nearest_ones() -> None:
    tune = TUNED["tune"] | {"at": {"data.unique_tokens": [1024, 16384]}}  # type: ignore[operator]
    study = study_of(**{**TUNED, "axes": {"data.unique_tokens": [1024, 2048, "2**13", 16384]}, "tune": tune})
    _, groups = tuned_by(study, loss_with_best({"a": 2e-3, "b": 2e-3}))
    members = {group.name: [arm.rpartition("-")[2] for arm in group.arms] for group in groups}
    assert members["a.unique_tokens-1024"] == ["1024", "2048"]
    assert members["a.unique_tokens-16384"] == ["8192", "16384"]
    assert {trial.config.data.unique_tokens for trial in groups[1].trials} == {16384}


def test_an_arm_tunes_keys_of_its_own_with_the_same_budget() -> None:
    arms_ = [{"name": "a"}, {"name": "b", "tune": {"model.dropout.residual": [0.1, 0.2, 0.3]}}]
    study = study_of(**{**TUNED, "arms": arms_})

    def loss(config: RunConfig, name: str) -> float:
        return abs(config.model.dropout.residual.value - 0.2) + abs(config.optimizer.lr - 2e-3)

    found, groups = tuned_by(study, loss)
    chosen = {arm.point.entry.name: (arm.config.optimizer.lr, arm.config.model.dropout.residual.value)
              for arm in found}  # fmt: skip
    assert chosen == {"a": (2e-3, 0.0), "b": (1e-3, 0.2)}
    assert [len(group.trials) for group in groups] == [6, 6]
    with pytest.raises(ValueError, match="arm b tunes over 4 combinations and the others over 3"):
        study_of(**{**TUNED, "arms": [{"name": "b", "tune": {"optimizer.lr": [1, 2, 3, 4]}}]})


def test_arms_wait_for_their_tuning(tmp_path: Path) -> None:
    graph = build_graph(study_of(**TUNED, then=[{"name": "x", "do": "evaluate"}]), tmp_path)
    assert {node.role for node in graph.nodes if not node.pending} == {"tune"}
    run = graph.by_name["a.unique_tokens-1024.seed-0"]
    assert run.pending and len(run.inputs) == 6
    assert graph.by_name[f"x.{run.name}"].pending


@pytest.mark.parametrize(
    ("tune", "error"),
    [
        (
            {"optimizer.lr": [1e-3, 2e-3]},
            "2 different values of each key and 3 combinations; optimizer.lr has 2",
        ),
        (
            {"optimizer.lr": [1e-3, 2e-3, 4e-3], "model.dropout.residual": [0.1]},
            "model.dropout.residual has 1",
        ),
        ({"axes": {"optimizer.lr": [1, 2, 3]}, "seeds": [1]}, "tune.seeds must not be seeds of arms; 1"),
        ({"model.d_ff": [1, 2, 3]}, "model.d_ff varies, so model.d_ff must not be set"),
    ],
)
def test_unfair_tuning_is_refused(tune: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        study_of(seeds=[0, 1], set={"model.d_ff": 64}, tune=tune)


@pytest.mark.parametrize(
    ("values", "best", "new"),
    [
        ([1.0, 2.0, 4.0], 1.0, 0.5),
        ([0.0, 0.1, 0.2], 0.2, 0.3),
        ([0.0, 0.1], 0.0, None),
        (["a", "b"], "a", None),
    ],
)
def test_beyond_continues_a_range(values: list[Any], best: Any, new: float | None) -> None:
    assert beyond(values, best) == (new if new is None else pytest.approx(new))


def test_two_arms_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"base: {BASE}\narms: [{{name: a}}, {{name: a}}]\n".replace("'", '"'))
    with pytest.raises(ConfigError, match="arms must have different names; a is there 2 times"):
        load_study(path)
