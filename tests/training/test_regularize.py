"""Regularizers in training: schedules, smoothing, noise in the inputs, averages, an early end."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from interrupts import crash, interrupt_at
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from reptrain.auditing.audit import audit
from reptrain.cli import app
from reptrain.config import RunConfig
from reptrain.config.sections import RegularizeConfig
from reptrain.errors import ConfigError, RunError
from reptrain.hub.export import export_model
from reptrain.hub.saved_model import open_saved_model
from reptrain.model import DropoutContext
from reptrain.model.dropout import BranchDropout, Dropout, Site, layer_keys
from reptrain.runs import RunFolder
from reptrain.runs.metrics import ValidRecord
from reptrain.training.loop import train
from reptrain.training.regularize import InputNoise

Make = Callable[..., RunConfig]


def trained(out: Path, config: RunConfig) -> RunFolder:
    train(config, out)
    return RunFolder.open(out)


def losses(folder: RunFolder) -> list[float]:
    return [record.loss_nats for record in folder.metrics.records("train")]


def scores(folder: RunFolder, weights: str) -> list[ValidRecord]:
    return [record for record in folder.metrics.records("valid") if record.weights == weights]


def state(folder: RunFolder, step: int) -> dict[str, Tensor]:
    return load_file(folder.checkpoints / f"step-{step}" / "state-00000-of-00001.safetensors")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny: Make) -> RunFolder:
    return trained(tmp_path_factory.mktemp("plain") / "run", tiny("train.total_tokens=0.5epochs"))


@pytest.mark.parametrize(
    "setting",
    [
        *(
            f"model.dropout.{site}"
            for site in ("embedding", "attention", "residual", "mlp", "path", "mlp_output")
        ),
        *(
            "regularize.label_smoothing",
            "regularize.z_loss",
            "regularize.input_noise",
            "regularize.masked_inputs",
        ),
    ],
)
def test_late_regularizers_change_no_bit_before_their_start(
    setting: str, plain: RunFolder, tiny: Make, tmp_path: Path
) -> None:
    late = tiny("train.total_tokens=0.5epochs", f"{setting}={{value: 0.3, start: 50%}}")
    found, expected = losses(trained(tmp_path / "run", late)), losses(plain)
    # The reported loss excludes the smoothing, which shows in the next step.
    first = math.ceil(len(expected) / 2) + setting.endswith(("smoothing", "z_loss", "masked_inputs"))
    assert len(expected) == 7
    assert found[:first] == expected[:first]
    assert all(one != other for one, other in zip(found[first:], expected[first:], strict=True))


def test_late_weight_decay_changes_no_bit_before_its_start(
    plain: RunFolder, tiny: Make, tmp_path: Path
) -> None:
    late = "optimizer.weight_decay={value: 3, before: 0.1, start: 4steps}"
    found = losses(trained(tmp_path / "run", tiny("train.total_tokens=0.5epochs", late)))
    expected = losses(plain)
    assert found[:5] == expected[:5]
    assert all(one != other for one, other in zip(found[5:], expected[5:], strict=True))


def context(row_B: Tensor) -> DropoutContext:
    return DropoutContext(seed=1, step=2, row_B=row_B)


@pytest.mark.parametrize("unknown", [3, None])
def test_input_noise_replaces_its_share_of_the_text_alone(unknown: int | None) -> None:
    is_text_V = torch.ones(50, dtype=torch.bool)
    is_text_V[:5] = False
    noise = InputNoise(is_text_V, unknown)
    tokens_BT = torch.randint(50, (64, 500), generator=torch.Generator().manual_seed(0))
    given = {"tokens_BT": tokens_BT, "is_token_BT": torch.ones(64, 500, dtype=torch.bool)}
    noisy = noise(given, 0.25, context(torch.arange(64)))
    assert noisy["is_token_BT"] is given["is_token_BT"]
    changed_BT = noisy["tokens_BT"] != tokens_BT
    assert not changed_BT[tokens_BT < 5].any()
    share = changed_BT[tokens_BT >= 5].double().mean().item()
    # Drawn from 45 ids, one in 45 is the token itself.
    assert share == pytest.approx(0.25 if unknown else 0.25 * 44 / 45, abs=0.01)
    new = noisy["tokens_BT"][changed_BT]
    if unknown is None:
        counts = np.bincount(new.numpy(), minlength=50)
        assert counts[:5].sum() == 0 and counts[5:].min() > 0.7 * counts[5:].mean()
    else:
        assert (new == unknown).all()
    alone = noise({"tokens_BT": tokens_BT[7:8]}, 0.25, context(torch.tensor([7])))
    assert torch.equal(alone["tokens_BT"][0], noisy["tokens_BT"][7])
    assert noise(given, 0.0, context(torch.arange(64))) is given


def test_input_noise_differs_between_encoder_and_decoder() -> None:
    noise = InputNoise(torch.ones(50, dtype=torch.bool), 3)
    same_BT = torch.full((2, 300), 20)
    noisy = noise({"source_BS": same_BT, "inputs_BT": same_BT}, 0.5, context(torch.arange(2)))
    assert not torch.equal(noisy["source_BS"], noisy["inputs_BT"])


def test_drop_path_drops_whole_rows_at_its_rate() -> None:
    branch = BranchDropout(0.0, 0.3, Site.MLP_RESIDUAL, Site.MLP_PATH)
    (keys,) = layer_keys(context(torch.arange(4000)).key_B, 0, 1, 1)
    x_BTD = torch.randn(4000, 2, 3)
    stream_BTD = torch.zeros_like(x_BTD)
    y_BTD = branch(stream_BTD, x_BTD, keys)
    is_dropped_B = (y_BTD == 0).flatten(1).all(1)
    assert is_dropped_B.double().mean().item() == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(y_BTD[~is_dropped_B], x_BTD[~is_dropped_B] / 0.7)
    other = BranchDropout(0.0, 0.3, Site.MLP_RESIDUAL, Site.ATTENTION_PATH)(stream_BTD, x_BTD, keys)
    assert not torch.equal(other == 0, y_BTD == 0)
    assert torch.equal(branch(stream_BTD, x_BTD, None), x_BTD)


EVERY_STEP = ("train.total_tokens=0.5epochs", "checkpoint.every_fraction=0.1", "checkpoint.keep_last=99")


def test_a_mean_of_weights_is_that_of_the_steps_from_its_start(tiny: Make, tmp_path: Path) -> None:
    config = tiny(*EVERY_STEP, "average={name: mean, start: 3steps}")
    folder = trained(tmp_path / "run", config)
    for key, value in state(folder, 7).items():
        if key.startswith("average:"):
            weights = [state(folder, step)[key.replace("average", "weight")] for step in (4, 5, 6, 7)]
            torch.testing.assert_close(value, torch.stack(weights).mean(0), rtol=1e-5, atol=1e-6)
    before = state(folder, 2)
    names = [key.removeprefix("weight:") for key in before if key.startswith("weight:")]
    assert all(torch.equal(before[f"weight:{name}"], before[f"average:{name}"]) for name in names)


def test_an_ema_of_weights_follows_its_formula_and_is_scored(tiny: Make, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", tiny(*EVERY_STEP, "average={decay: 0.6}"))
    key = "embedding.weight@0"
    expected = state(folder, 1)[f"weight:{key}"]
    for step in range(2, 8):
        expected = 0.6 * expected + 0.4 * state(folder, step)[f"weight:{key}"]
    torch.testing.assert_close(state(folder, 7)[f"average:{key}"], expected)
    own, average = scores(folder, "own"), scores(folder, "average")
    assert [(r.step, r.set) for r in own] == [(r.step, r.set) for r in average]
    assert [r.nats for r in own][:3] == [r.nats for r in average][:3]
    assert all(one.nats != other.nats for one, other in zip(own[3:], average[3:], strict=True))
    models = [open_saved_model(folder.path, average=average) for average in (False, True)]
    for kind, model in zip(("weight", "average"), models, strict=True):
        loaded = dict(model.load().named_parameters())["embedding.weight"]
        assert torch.equal(loaded.flatten(), state(folder, 7)[f"{kind}:{key}"])
    assert models[0].fingerprint() != models[1].fingerprint()


def test_an_average_goes_out_of_the_house(tiny: Make, plain: RunFolder, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", tiny("train.total_tokens=0.3epochs", "average={decay: 0.9}"))
    export_model(folder.path, tmp_path / "exported", average=True)
    whole = load_file(tmp_path / "exported" / "model.safetensors")["model.embed_tokens.weight"]
    average = state(folder, folder.ledger.end())["average:embedding.weight@0"]
    assert torch.equal(whole.flatten(), average)
    run = CliRunner().invoke(app, ["generate", str(plain.path), "--prompt", "a", "--average"])
    assert "requires a run that keeps an average" in str(run.exception)
    with pytest.raises(RunError, match="a folder that is not a run"):
        open_saved_model(tmp_path / "exported", average=True)


def test_an_average_changes_no_bit_of_the_run(plain: RunFolder, tiny: Make, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", tiny("train.total_tokens=0.5epochs", "average={decay: 0.9}"))
    assert losses(folder) == losses(plain)
    assert [r.nats for r in scores(folder, "own")] == [r.nats for r in scores(plain, "own")]


@pytest.mark.parametrize("average", ["{decay: 0.6}", "{name: mean, start: 20%}"])
def test_an_average_is_exact_on_resume(
    average: str, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(*EVERY_STEP, f"average={average}", "evaluate.every_fraction=0.2")
    unbroken = trained(tmp_path / "unbroken", config)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, crash)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    broken = trained(tmp_path / "run", config)
    assert scores(broken, "average") == scores(unbroken, "average")
    one, other = state(broken, 7), state(unbroken, 7)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_patience_ends_a_run_early_and_for_good(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From 40 % on each step shrinks the weights to a tenth: the loss falls until there and then rises, on any
    # processor.
    forgets = "optimizer.weight_decay={value: 300, before: 0, start: 40%}"
    config = tiny(forgets, "evaluate.every_fraction=0.1", "evaluate.patience=2")
    result = train(config, tmp_path / "run")
    assert result.state == "done" and str(result.reason).startswith("select did not improve on")
    folder = RunFolder.open(tmp_path / "run")
    select = [record.nats for record in scores(folder, "own") if record.set == "select"]
    assert min(select) == select[-3] and 3 < len(select) < 10
    assert folder.status().state == "done" and folder.status().step == result.steps == folder.ledger.end()
    assert train(config, tmp_path / "run").state == "already done"
    report = audit(folder.path)
    assert report.exact, report.text()
    # One that was broken in between counts the evaluations before, and one that was killed between its
    # last checkpoint and the word that it is done takes no further step.
    with monkeypatch.context() as patch:
        interrupt_at(patch, result.steps - 1, crash)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "set_status", raise_when_done)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "broken")
    again = train(config, tmp_path / "broken")
    assert (again.steps, again.reason) == (result.steps, result.reason)
    assert RunFolder.open(tmp_path / "broken").ledger.end() == result.steps


_set_status = RunFolder.set_status


def raise_when_done(self: RunFolder, state: Any, *args: Any, **named: Any) -> None:
    if state == "done":
        raise KeyboardInterrupt
    _set_status(self, state, *args, **named)


@pytest.mark.parametrize("by", ["unknown", "random"])
def test_input_noise_by_unknown_needs_an_unknown_id(by: str) -> None:
    config = RegularizeConfig.model_validate({"input_noise": 0.1, "input_noise_by": by})
    tokenizer: Any = SimpleNamespace(vocab_size=9, pad_id=0, eos_id=1, unk_id=-1, sentinel_ids=(8,))
    if by == "unknown":
        with pytest.raises(ConfigError, match="input_noise_by=random"):
            InputNoise.of(config, tokenizer)
    else:
        assert InputNoise.of(config, tokenizer).is_text_V.nonzero().flatten().tolist() == [*range(2, 8)]


def test_masks_drop_whole_outputs_at_their_rate() -> None:
    mask = Dropout(0.3, Site.MLP_OUTPUT)
    keys = layer_keys(context(torch.arange(40)).key_B, 0, 1, 1)[0]
    x_BTD = torch.randn(40, 100, 3)
    y_BTD = mask.mask_rows(x_BTD, keys)
    is_masked_BT = (y_BTD == 0).all(2)
    assert is_masked_BT.double().mean().item() == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(y_BTD[~is_masked_BT], x_BTD[~is_masked_BT] / 0.7)
    assert mask.mask_rows(x_BTD, None) is x_BTD
