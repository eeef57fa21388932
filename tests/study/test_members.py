"""Members of ensembles, and the results of commands as columns of the runs' table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest

from reptrain.analysis.claims import judge
from reptrain.config.load import validate
from reptrain.errors import ConfigError, StudyError
from reptrain.study import StudyConfig, arms
from reptrain.study.build import build_graph
from reptrain.study.graph import Node
from reptrain.study.node_results import result_columns
from reptrain.study.paths import result_path
from reptrain.study.write_tables import study_runs

BASE: dict[str, Any] = {
    "data": {"store": "s", "unique_tokens": 4096, "window_tokens": 64},
    "model": {"d_model": 64, "num_layers": 2, "num_heads": 2, "d_ff": 128, "vocab_size": 512},
    "train": {"total_tokens": 16384, "batch_windows": 8},
}
ARMS: list[dict[str, Any]] = [
    {"name": "small", "members": 2},
    {"name": "large", "set": {"model.d_model": 128}},
]
TOGETHER = {"name": "together", "do": "ensemble", "over": "members"}
CLAIM: dict[str, Any] = {
    "name": "c",
    "statement": "The ensemble is better.",
    "metric": "together.report.loss_nats",
    "where": {"member": 1},
    "contrast": {"treatment": {"entry": "small"}, "control": {"entry": "large"}, "free": ["model.d_model"]},
    "direction": "less",
}
SEEDS = [0, 1, 2, 3, 4]
PARTS: tuple[Literal["order", "noise", "weights", "dropout"], ...] = ("order", "noise", "weights", "dropout")


def study_of(**fields: Any) -> StudyConfig:
    return validate(StudyConfig, {"name": "s", "base": BASE, "arms": ARMS, "seeds": SEEDS, **fields})


def write_result(out: Path, node: Node, output: Any) -> None:
    path = result_path(out, node.name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"fingerprint": node.fingerprint, "output": output}))


def write_task(folder: Path) -> Path:
    path = folder / "task.yaml"
    path.write_text("name: t\n")
    return path


def test_members_share_the_subset_and_the_first_is_the_arm_without_members() -> None:
    found = {arm.name: arm for arm in arms(study_of())}
    plain = {arm.name: arm for arm in arms(study_of(arms=[{"name": "small"}]))}
    first, second, other = (found[f"small.member-{m}.seed-{s}"] for m, s in ((1, 0), (2, 0), (2, 1)))
    assert first.config.model_copy(update={"name": "small.seed-0"}) == plain["small.seed-0"].config
    assert first.config.data == second.config.data
    for part in PARTS:
        assert len({arm.config.seed_of(part) for arm in (first, second, other)}) == 3
    assert second.values["member"] == 2 and found["large.seed-0"].values["member"] == 1
    assert second.group == "small.member-2"


def test_members_change_no_part_that_seeds_do_not_change() -> None:
    study = study_of(seed_changes={"order": False, "noise": False})
    second = next(arm for arm in arms(study) if arm.name == "small.member-2.seed-3")
    assert second.config.seed_of("order") == 0 and second.config.seed_of("weights") > 3


def test_an_ensemble_over_members_takes_the_runs_of_one_seed(tmp_path: Path) -> None:
    nodes = build_graph(study_of(then=[TOGETHER]), tmp_path).by_name
    assert nodes["together.small.seed-3"].inputs == ("small.member-1.seed-3", "small.member-2.seed-3")
    assert nodes["together.small.seed-3"].seed == 3
    assert nodes["together.large.seed-3"].inputs == ("large.seed-3",)


def test_a_claim_compares_the_results_of_commands(tmp_path: Path) -> None:
    study = study_of(then=[TOGETHER], claims=[CLAIM])
    graph = build_graph(study, tmp_path)
    for node in graph.nodes:
        if node.entry:
            names = [str(tmp_path / "runs" / name) for name in node.inputs]
            nats = (
                3.0
                + 0.01 * (node.seed or 0)
                + (0.5 + 0.001 * (node.seed or 0) ** 2 if node.arm == "large" else 0.0)
            )
            rows = [{"run": name, "set": "report", "objective": "causal", "nats": 9.0} for name in names]
            write_result(tmp_path, node, [*rows, {**rows[0], "run": " + ".join(names), "nats": nats}])
    table = study_runs(study, tmp_path)
    rows = {row["run"]: row for row in table.to_pylist()}
    assert rows["small.member-2.seed-1"]["together.report.loss_nats"] == pytest.approx(3.01)
    # The runs themselves are not trained here.
    table = table.set_column(table.column_names.index("status"), "status", pa.array(["done"] * len(table)))
    audits = pa.array(["exact"] * len(table))
    table = table.set_column(table.column_names.index("audit_verdict"), "audit_verdict", audits)
    (result,) = judge(table, study.claims)
    assert result.verdict == "supported" and result.judged.effect == pytest.approx(-0.506)


def test_results_of_each_command_become_columns(tmp_path: Path) -> None:
    task = str(write_task(tmp_path))
    study = study_of(
        arms=[{"name": "a"}], seeds=[0],
        then=[
            {"name": "tuned", "do": "finetune", "task": task},
            {"name": "answers", "do": "score-task", "of": "tuned", "task": task},
            {"name": "harness", "do": "lm-eval"},
            {"name": "copied", "do": "memorization"},
            {"name": "views", "do": "evaluate"},
            {"name": "damaged", "do": "evaluate"},
            {"name": "saved", "do": "export"},
        ],
    )  # fmt: skip
    scores = [
        {"nats_per_token": nats, "nats_per_answer": 4.0, "metrics": {"f1": 50.0}} for nats in (1.0, 2.0)
    ]
    outputs: dict[str, Any] = {
        "tuned.a": {"seeds": [{"best": {"report": one}, "last": {"report": one}} for one in scores]},
        "answers.tuned.a": [{"run": "x", "step": 4, "task": "t", "examples": 8, "f1": 25.0}],
        "harness.a": [{"run": "x", "task": "blimp", "metric": "acc", "value": 0.5, "stderr": None}],
        "copied.a": [
            {"set": "train", "exposures": count, "windows": 10, "reproduced": count} for count in (1, 2)
        ],
        "views.a": [
            {"run": "x", "set": "select", "objective": name, "nats": nats, "gap_nats": None}
            for name, nats in (("causal", 3.0), ("prefix_lm", 2.0))
        ],
        "damaged.a": [{"no": "set"}],
        "saved.a": {"files": 3},
    }
    graph = build_graph(study, tmp_path)
    for name, output in outputs.items():
        write_result(tmp_path, graph.by_name[name], output)
    assert result_columns(graph, tmp_path)["a"] == {
        "tuned.best.nats_per_token": 1.5, "tuned.best.nats_per_answer": 4.0, "tuned.best.f1": 50.0,
        "tuned.last.nats_per_token": 1.5, "tuned.last.nats_per_answer": 4.0, "tuned.last.f1": 50.0,
        "answers.step": 4, "answers.examples": 8, "answers.f1": 25.0,
        "harness.blimp.acc": 0.5,
        "copied.train.share": 0.15,
        "views.select.causal.loss_nats": 3.0, "views.select.prefix_lm.loss_nats": 2.0,
    }  # fmt: skip


def test_rows_over_several_models_belong_to_the_models_in_their_order(tmp_path: Path) -> None:
    task = str(write_task(tmp_path))
    study = study_of(
        arms=[{"name": "a"}],
        seeds=[0, 1],
        then=[
            {"name": "tuned", "do": "finetune", "task": task},
            {"name": "answers", "do": "score-task", "of": "tuned", "over": "seeds", "task": task},
        ],
    )
    graph = build_graph(study, tmp_path)
    (node,) = (node for node in graph.nodes if node.entry == "answers")
    # The folders of fine-tuned models all end alike.
    rows = [{"run": f"products/{name}/seed-0", "f1": 10.0 * at} for at, name in enumerate(node.inputs)]
    write_result(tmp_path, node, rows)
    found = result_columns(graph, tmp_path)
    assert [found[f"a.seed-{seed}"] for seed in (0, 1)] == [{"answers.f1": 0.0}, {"answers.f1": 10.0}]
    write_result(tmp_path, node, rows[:1])
    assert result_columns(graph, tmp_path) == {"a.seed-0": {}, "a.seed-1": {}}


@pytest.mark.parametrize(
    ("then", "claim", "error"),
    [
        ({**TOGETHER, "over": "seeds"}, {}, "one result for all seeds"),
        (TOGETHER, {"max_seeds": 8}, "must have one look"),
        ({**TOGETHER, "where": {"arm": "small"}}, {}, "large, which has no together.report.loss_nats"),
        ({"name": "together", "do": "export"}, {}, "must name a command with scores"),
        (TOGETHER, {"metric": "apart.report.loss_nats"}, "apart.report.loss_nats"),
    ],
)
def test_a_claim_that_no_result_can_answer_is_refused(
    then: dict[str, Any], claim: dict[str, Any], error: str, tmp_path: Path
) -> None:
    with pytest.raises(StudyError, match=error):
        build_graph(study_of(then=[then], claims=[{**CLAIM, **claim}]), tmp_path)


def test_members_that_cannot_differ_are_refused() -> None:
    fixed = {"order": False, "noise": False, "weights": False}
    with pytest.raises(ConfigError, match="members of an ensemble must differ"):
        study_of(seed_changes=fixed)
    with pytest.raises(ConfigError, match="must not have the name set"):
        study_of(then=[{"name": "set", "do": "evaluate"}])
