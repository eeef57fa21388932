"""The routers of a run: agreement over its checkpoints, dead experts, the cost of each expert."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.config import RunConfig
from reptrain.config.model import MoEConfig
from reptrain.errors import RunError
from reptrain.evaluation.evaluate import evaluate, open_run
from reptrain.evaluation.router_health import _probes, _Routes, record_routers, router_health, without_expert
from reptrain.model import Decoder
from reptrain.model.router import Router
from reptrain.runs import RunFolder
from reptrain.tables import read_run
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
    assert early.compared(last) == [
        {"layer": "0", "probe_tokens": 4, "agreement": 0.75, "dead": 0},
        {"layer": "2", "probe_tokens": 4, "agreement": 0.25, "dead": 3},
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
@pytest.mark.parametrize("expert", [0, 3])
def test_a_removed_expert_costs_what_a_model_without_its_weights_loses(run: Path, expert: int) -> None:
    opened = open_run(run, device="cpu")
    moe = opened.config.model.moe
    assert moe is not None
    smaller = opened.config.model.model_copy(update={"moe": moe.model_copy(update={"num_experts": 3})})
    rest = Decoder(smaller, vocab_size=opened.model.embedding.num_embeddings).eval()
    kept = [e for e in range(4) if e != expert]
    state = opened.model.state_dict()
    rest.load_state_dict(
        {
            key: value[kept] if ".experts." in key or ".router." in key else value
            for key, value in state.items()
        }
    )
    (probe,) = _probes(opened, 2)
    whole = probe.score(opened.model, world=opened.world)
    without = probe.score(rest, world=opened.world)
    *_, record = router_health(run, max_windows=2, device="cpu")
    assert record.knock_out_nats is not None
    expected = without.nats_per_token - whole.nats_per_token
    assert max(record.knock_out_nats) > 1e-3
    assert record.knock_out_nats[expert] == pytest.approx(expected, abs=1e-6)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("top_k", "score"), [(4, "softmax"), (4, "sigmoid"), (1, "softmax")])
def test_no_token_uses_a_removed_expert(top_k: int, score: Literal["softmax", "sigmoid"]) -> None:
    config = MoEConfig(num_experts=4, top_k=top_k, score=score, bias_rate=1.0)
    router = Router(8, config).eval()
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(0))
    # The expert bias favors the expert that is removed.
    router.votes_E[2] = 100
    x_BTD = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    is_token_BT = torch.ones(2, 5, dtype=torch.bool)
    with torch.no_grad(), without_expert(router, 2):
        choice, losses = router(x_BTD, is_token_BT, None)
    assert (choice.gate_BTK[choice.expert_BTK == 2] == 0).all()
    assert choice.gate_BTK.sum(-1).isfinite().all() and (choice.gate_BTK.sum(-1) > 0).all()
    assert losses.balance_G.isfinite().all()
    assert router.removed is None and router.votes_E.tolist() == [0, 0, 100, 0]


@pytest.mark.usefixtures("one_thread")
def test_command_routers_prints_and_records(run: Path) -> None:
    arguments = ["routers", str(run), "--max-windows", "2", "--device", "cpu"]
    printed = CliRunner().invoke(app, [*arguments, "--no-knock-out", "--no-record", "--json"]).stdout
    rows = json.loads(printed)
    assert rows[-1]["agreement"] == 1 and rows[-1]["knock_out_mean_nats"] is None
    folder = RunFolder.open(run)
    assert not list(folder.routers.records())
    # The second call replaces what the first one wrote.
    for _ in range(2):
        text = CliRunner().invoke(app, arguments).stdout
    assert text.splitlines()[0].split()[:4] == ["step", "layer", "agreement", "dead"]
    records = list(folder.routers.records())
    assert len(records) == len(rows) and {record.probe_tokens for record in records} == {2 * 32}
    assert [record.tokens for record in records] == sorted(record.tokens for record in records)
    assert records[-1].epoch == 2
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    curve = [(event.step, event.value) for event in events.Scalars("routers/1/agreement")]
    assert curve == [(r.tokens, pytest.approx(r.agreement)) for r in records if r.layer == "1"]
    (largest,) = events.Scalars("routers/1/knock_out_max_nats")
    assert largest.value == pytest.approx(records[-1].knock_out_max_nats)
    reading = read_run(run)
    costs = [cost for record in records[-2:] for cost in record.knock_out_nats or ()]
    assert reading.row["knock_out_max_nats"] == max(costs)
    assert reading.row["knock_out_mean_nats"] == pytest.approx(sum(costs) / 8)
    folder.routers.path.write_text("{}\n")
    reading = read_run(run)
    assert reading.row["status"] == "damaged" and "reptrain routers" in reading.row["reason"]
    assert reading.row["loss_report_final_nats"] > 0
    folder.routers.remove()


def test_record_routers_reports_a_folder_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("no folder")
    with pytest.raises(RunError, match=r"must be a folder that can be written.*--no-record"):
        record_routers(RunFolder(tmp_path), [])


def test_router_health_refuses_a_dense_run(trained: Callable[[str], Path]) -> None:
    with pytest.raises(RunError, match="must have sparse layers"):
        router_health(trained("causal"), device="cpu")
