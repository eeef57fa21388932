"""Several runs scored as one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.config import RunConfig
from reptrain.errors import ReptrainError, RunError
from reptrain.evaluation.ensemble import (
    Ensemble,
    ensemble_of,
    fit_weights,
    learned_weights,
    snapshot_steps,
)
from reptrain.evaluation.evaluate import open_run, score_run
from reptrain.evaluation.sets import evaluation_sets
from reptrain.training.loop import train
from reptrain_kernels.ops.linear_cross_entropy import Targets

MakeConfig = Callable[..., RunConfig]
SHORT = ("train.total_tokens=2000", "evaluate.every_fraction=1", "optimizer.lr=1e-2")
OTHERS = {
    "wider": ("seed=1", "model.d_model=48", "model.num_kv_heads=1"),
    "narrower windows": ("data.window_tokens=16",),
    "other objective": ("objective.name=prefix_lm",),
    "other subset": ("data.unique_tokens=3000", "seed=2"),
    "untrained": ("optimizer.lr=1e-9",),
    "cyclic": ("schedule.name=cyclic", "schedule.cycles=2", "checkpoint.at_cycle_ends=true"),
}


@pytest.fixture(scope="module")
def runs(tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("runs")

    def of(name: str) -> Path:
        if not (folder / name).exists():
            train(tiny(*SHORT, *OTHERS.get(name, ())), folder / name)
        return folder / name

    return of


def test_ensemble_of_one_is_the_model(runs: Callable[[str], Path]) -> None:
    run = open_run(runs("plain"), device="cpu")
    alone, averaged = score_run(run), score_run(ensemble_of([run]))
    assert [score.set for score in averaged] == ["probe", "select", "report"]
    for one, other in zip(alone, averaged, strict=True):
        # The mean of one probability rounds: the loss is compared below.
        counts = [{**score.row(), "nats": 0, "bits_per_byte": 0, "gap_nats": 0} for score in (one, other)]
        assert counts[0] == counts[1]
        assert other.nats == pytest.approx(one.nats, rel=1e-6)


def test_ensemble_nats_are_those_of_the_mean_probability(runs: Callable[[str], Path]) -> None:
    members = [open_run(runs(name), device="cpu") for name in ("plain", "wider")]
    first = members[0]
    (select,) = (
        found
        for found in evaluation_sets(
            first.config, first.sources, first.tokenizer, world=first.world, micro_batch_windows=8
        )
        if found.name == "select"
    )
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for batch in select.micro_batches:
            example = select.objective.example(batch)
            asked = Targets(example.targets_BT)
            likely_KBT = torch.stack(
                [(-run.model(**example.inputs, targets=asked).nats).exp() for run in members]
            )
            nats -= float((likely_KBT.mean(0).log() * example.is_scored_BT).sum())
            tokens += int(example.is_scored_BT.sum())
    scores = {score.set: score for score in score_run(ensemble_of(members))}
    assert scores["select"].nats == pytest.approx(nats / tokens, rel=1e-5)
    assert scores["select"].scores["scored_tokens"] == tokens
    # By Jensen's inequality the mean is at least as good as its members are on average.
    alone = [score.nats for run in members for score in score_run(run, sets=["select"])]
    assert scores["select"].nats < sum(alone) / 2


def test_logits_are_normalized() -> None:
    class Member(torch.nn.Module):
        def forward(self, shift: float) -> torch.Tensor:
            return torch.arange(4.0)[None, None] + shift

    assert Ensemble([Member(), Member()])(shift=1e3).logsumexp(-1).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "words"), [("narrower windows", "window_tokens 16"), ("other objective", "objective")]
)
def test_ensemble_of_different_examples_is_refused(
    name: str, words: str, runs: Callable[[str], Path]
) -> None:
    with pytest.raises(RunError, match=words):
        ensemble_of([open_run(runs("plain"), device="cpu"), open_run(runs(name), device="cpu")])


def test_evaluate_prints_members_and_their_ensemble(runs: Callable[[str], Path]) -> None:
    paths = [str(runs(name)) for name in ("plain", "other subset")]
    told = CliRunner().invoke(
        app, ["evaluate", *paths, "--ensemble", "--device", "cpu", "--json"], catch_exceptions=False
    )
    rows = json.loads(told.output)
    assert [row["run"] for row in rows if row["set"] == "report"] == [*paths, " + ".join(paths)]
    # Their training windows are not the same.
    assert [row["set"] for row in rows if " + " in row["run"]] == ["select", "report"]


def test_fitted_weights_are_the_best_of_a_grid() -> None:
    torch.manual_seed(0)
    log_KN, weight_N = torch.randn(2, 200).double() - 4, torch.rand(200).double()
    share, rest = fit_weights(log_KN, weight_N)

    def likelihood(share: float) -> float:
        mixed_N = torch.logaddexp(log_KN[0] + math.log(share), log_KN[1] + math.log1p(-share))
        return float(weight_N @ mixed_N)

    best = max((number / 1000 for number in range(1, 1000)), key=likelihood)
    assert share == pytest.approx(best, abs=2e-3) and share + rest == 1


def test_fitted_weights_leave_out_a_useless_member() -> None:
    log_KN = torch.stack([torch.full((50,), -1.0), torch.full((50,), -9.0)])
    assert fit_weights(log_KN, torch.ones(50)) == [1.0, 0.0]


def test_learned_weights_are_at_least_as_good_on_select(
    runs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [open_run(runs(name), device="cpu") for name in ("plain", "wider", "untrained")]
    weights = learned_weights(members)
    assert weights[2] < 0.05 and sum(weights) == pytest.approx(1)
    # In micro-batches of other sizes too.
    with monkeypatch.context() as patch:
        patch.setattr("reptrain.evaluation.evaluate._ROWS", 3)
        assert learned_weights(members) == pytest.approx(weights, abs=1e-3)
    nats = [
        score_run(run, sets=["select"])[0].nats
        for run in (*members, ensemble_of(members), ensemble_of(members, weights))
    ]
    # Weights are rounded to 4 digits.
    assert nats[-1] <= min(nats) + 1e-4


def test_weighted_ensemble_probabilities_are_the_weighted_mean() -> None:
    class Member(torch.nn.Module):
        def __init__(self, *logits: float) -> None:
            super().__init__()
            self.logits = torch.tensor([[logits]])

        def forward(self) -> torch.Tensor:
            return self.logits

    members = [Member(0.3, -1.0, 2.0), Member(-0.5, 0.1, 0.2)]
    expected = 0.9 * members[0]().softmax(-1) + 0.1 * members[1]().softmax(-1)
    torch.testing.assert_close(Ensemble(members, [0.9, 0.1])().exp(), expected)


def test_evaluate_scores_snapshots_with_weights_learned_on_select(runs: Callable[[str], Path]) -> None:
    path = runs("cyclic")
    first, last = snapshot_steps(path)

    def invoked(*more: str) -> list[dict[str, Any]]:
        command = ["evaluate", str(path), "--snapshots", "--ensemble", "--learn-weights", "--device", "cpu"]
        result = CliRunner().invoke(app, [*command, "--json", *more], catch_exceptions=False)
        rows: list[dict[str, Any]] = json.loads(result.output)
        return rows

    rows = invoked()
    assert [row["step"] for row in rows if row["set"] == "report"] == [first, last, last]
    ensemble = [row for row in rows if " + " in row["run"]]
    assert ensemble[0]["run"] == " + ".join(f"{path}/checkpoints/step-{step}" for step in (first, last))
    weights = ensemble[0]["member_weights"]
    assert sum(weights) == pytest.approx(1) and rows[0]["member_weights"] is None
    # Same training windows, hence a probe. The report split does not enter the weights.
    assert [row["set"] for row in ensemble] == ["probe", "select", "report"]
    assert invoked("--set", "report")[-1] == ensemble[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--snapshots"], "checkpoint.at_cycle_ends"),
        (["--snapshots", "--step", "3"], "--step"),
        (["--learn-weights"], "--ensemble"),
    ],
)
def test_snapshots_and_weights_are_refused_with_a_remedy(
    options: list[str], words: str, runs: Callable[[str], Path]
) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(runs("plain")), *options, "--device", "cpu"])
    assert words in str(result.exception)
    assert isinstance(result.exception, ReptrainError)
