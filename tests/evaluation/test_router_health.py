"""The routers of a run: agreement over its checkpoints, dead experts, the cost of each expert."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.config import RunConfig
from reptrain.errors import RunError
from reptrain.evaluation.evaluate import evaluate, open_run
from reptrain.evaluation.router_health import _probes, _Routes, _without, router_health
from reptrain.runs import RunFolder
from reptrain.training.loop import train

SPARSE = (
    "model.num_layers=2",
    "model.num_stored_layers=1",
    "model.moe={num_experts: 4, top_k: 2, balance_coefficient: 0}",
    *("train.total_tokens=2epochs", "evaluate.every_fraction=1", "evaluate.max_windows=8"),
    *("checkpoint.every_fraction=0.25", "checkpoint.keep_last=9", "optimizer.lr=0.02"),
)


@pytest.fixture(scope="module")
def run(tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("routers") / "run"
    train(tiny(*SPARSE), out)
    return out


@pytest.mark.usefixtures("one_thread")
def test_routers_agree_with_the_last_ones_at_the_end(run: Path) -> None:
    rows = router_health(run, device="cpu")
    steps = sorted({row.step for row in rows})
    assert len(steps) >= 4
    assert [(row.step, row.layer) for row in rows] == [(step, layer) for step in steps for layer in "01"]
    assert all(row.agreement == 1 for row in rows if row.step == steps[-1])
    assert all(0 <= row.agreement <= 1 and 0 <= row.dead <= 2 for row in rows)
    assert all(row.knock_out_mean_nats is None for row in rows if row.step < steps[-1])
    # One stored layer runs twice: removing its expert has the same cost in both rows.
    first, second = rows[-2:]
    assert first.knock_out_mean_nats == second.knock_out_mean_nats
    assert first.knock_out_max_nats is not None and first.knock_out_mean_nats is not None
    assert first.knock_out_max_nats >= first.knock_out_mean_nats


@pytest.mark.usefixtures("one_thread")
def test_every_evaluation_records_dead_experts_and_the_largest_load(run: Path) -> None:
    records = [record for record in RunFolder.open(run).metrics.records("valid") if record.set == "probe"]
    health = router_health(run, device="cpu", knock_out=False)
    for record in records:
        rows = [row for row in health if row.step == record.step]
        if rows:
            assert record.scores["dead_experts"] == sum(row.dead for row in rows)
        # Of 4 experts, a token selects 2: the busiest has at least the mean, and at most every token.
        assert 1 <= record.scores["expert_peak"] <= 2
    assert {row.step for row in health} & {record.step for record in records}
    (score,) = evaluate(run, sets=["probe"], device="cpu")
    assert score.scores["dead_experts"] == records[-1].scores["dead_experts"]
    events = EventAccumulator(str(RunFolder.open(run).tensorboard))
    events.Reload()
    assert {"probe/dead_experts", "probe/expert_peak"} <= set(events.Tags()["scalars"])


def test_agreement_and_dead_experts_are_counted_by_layer() -> None:
    early = _Routes(
        ["0", "2"],
        [torch.tensor([0, 1, 2, 3]), torch.tensor([1, 1, 1, 1])],
        [torch.tensor([1, 1, 1, 1]), torch.tensor([0, 4, 0, 0])],
    )
    last = _Routes(
        ["0", "2"], [torch.tensor([0, 1, 2, 0]), torch.tensor([1, 0, 0, 0])], [torch.ones(4), torch.ones(4)]
    )
    rows = early.compared(last, Path("run"), 7)
    assert [(row.step, row.layer, row.agreement, row.dead) for row in rows] == [
        (7, "0", 0.75, 0),
        (7, "2", 0.25, 3),
    ]


@pytest.mark.usefixtures("one_thread")
def test_routes_are_those_of_the_model(run: Path) -> None:
    """The recorded experts are the largest scores of the router of each execution."""
    opened = open_run(run, device="cpu")
    given: list[torch.Tensor] = []
    (_, layer), *_ = opened.model.sparse_layers()
    hook = layer.router.register_forward_pre_hook(lambda router, inputs: given.append(inputs[0]))
    (probe,) = probes = _probes(opened, 2)
    routes = _Routes.of(opened, probes)
    hook.remove()
    (batch,) = probe.micro_batches
    is_token_BT = torch.arange(batch.tokens_BL.shape[1]) < batch.length_B[:, None]
    for first_N, x_BTD in zip(routes.first_LN, given, strict=True):
        expected_BT = (x_BTD @ layer.router.weight.T).argmax(-1)
        assert torch.equal(first_N, expected_BT[is_token_BT])


@pytest.mark.usefixtures("one_thread")
def test_a_dead_expert_is_counted_and_costs_nothing(run: Path) -> None:
    opened = open_run(run, device="cpu")
    _, layer = opened.model.sparse_layers()[0]
    with torch.no_grad():
        tokens_BT = torch.randint(2, 400, (2, 16), generator=torch.Generator().manual_seed(0))
        whole = opened.model(tokens_BT)
        with _without(layer.router, 3):
            assert not torch.equal(opened.model(tokens_BT), whole)
        # No token selects an expert whose bias is far below all scores.
        object.__setattr__(layer.router.config, "bias_rate", 1.0)
        layer.router.votes_E[3] = -1000
        without = opened.model(tokens_BT)
        with _without(layer.router, 3):
            assert torch.equal(opened.model(tokens_BT), without)


@pytest.mark.usefixtures("one_thread")
def test_command_routers_prints_a_table_or_json(run: Path) -> None:
    arguments = ["routers", str(run), "--max-windows", "2", "--no-knock-out", "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    rows = json.loads(result.stdout)
    assert rows[-1]["agreement"] == 1 and rows[-1]["knock_out_mean_nats"] is None
    text = CliRunner().invoke(app, arguments).stdout
    assert text.splitlines()[0].split()[:4] == ["step", "layer", "agreement", "dead"]


@pytest.mark.usefixtures("one_thread")
def test_router_health_leaves_the_scores_as_they_are(run: Path) -> None:
    opened = open_run(run, device="cpu")
    _, layer = opened.model.sparse_layers()[0]
    with _without(layer.router, 0):
        pass
    assert not layer.router._forward_hooks
    assert evaluate(run, sets=("probe",), device="cpu")[0].nats > 0


def test_router_health_refuses_a_dense_run(trained: Callable[[str], Path]) -> None:
    with pytest.raises(RunError, match="must have sparse layers"):
        router_health(trained("causal"), device="cpu")
