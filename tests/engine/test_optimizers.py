"""Optimizers other than AdamW: their formulas, their state on resume, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from interrupts import crash, interrupt_at
from safetensors.torch import load_file
from torch._inductor.cpu_vec_isa import pick_vec_isa

from reptrain.config import RunConfig
from reptrain.config.model import DecoderConfig
from reptrain.config.optimizers import AdafactorConfig, AdamWConfig, MuonConfig
from reptrain.engine.loop import train
from reptrain.engine.optim import build_optimizer, set_learning_rate
from reptrain.errors import ConfigError
from reptrain.model import build_model
from reptrain.runs import RunFolder
from reptrain.runs.audit import audit

MOE = "model.moe={num_experts: 4, d_ff: 32}"
T5_RECIPE = ("optimizer.name=adafactor", "schedule.name=constant", "schedule.warmup_fraction=0")
needs_vectors = pytest.mark.skipif(
    not pick_vec_isa(), reason="torch.compile fails on a CPU without AVX2, and DeepSpeed's Muon is compiled"
)
OPTIMIZERS = {"adafactor": T5_RECIPE, "muon": ("optimizer.name=muon", "optimizer.weight_decay=0.01")}


@pytest.mark.parametrize("name", ["adafactor", pytest.param("muon", marks=needs_vectors)])
def test_it_learns_and_is_exact_on_resume(
    name: str, tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("optimizer.lr=0.02", *OPTIMIZERS[name], MOE, "train.total_tokens=0.5epochs")
    config = tiny(*given, "checkpoint.every_fraction=0.3")
    train(config, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, crash)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "broken")
    train(config, tmp_path / "broken")
    unbroken, broken = (RunFolder.open(tmp_path / run) for run in ("unbroken", "broken"))
    losses, again = ([r.loss_nats for r in f.metrics.records("train")] for f in (unbroken, broken))
    assert losses == again and losses[-1] < losses[0]
    one, other = (
        load_file(f.checkpoints / "step-7" / "state-00000-of-00001.safetensors") for f in (unbroken, broken)
    )
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    kinds = {key.split(":")[0] for key in one}
    expected = {"row_var", "col_var", "variance"} if name == "adafactor" else {"momentum_buffer", "exp_avg"}
    assert expected < kinds
    assert audit(broken.path).exact


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("stage", [1, 3])
def test_it_is_refused_where_zero_cuts_matrices(
    name: str, stage: int, tiny: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.name {name} needs train.zero_stage 0, and {stage}"):
        tiny(*OPTIMIZERS[name], f"train.zero_stage={stage}")


def test_adafactor_follows_the_recipe_of_t5() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(3, 5))
    model = torch.nn.Module()
    model.weight = weight
    optimizer = build_optimizer(model, AdafactorConfig(name="adafactor"))
    row, column, expected = torch.zeros(3), torch.zeros(5), weight.detach().clone()
    for step in range(1, 4):
        weight.grad = gradient = torch.randn(3, 5)
        optimizer.step()
        keep = 1 - step**-0.8
        row = keep * row + (1 - keep) * gradient.square().mean(1)
        column = keep * column + (1 - keep) * gradient.square().mean(0)
        update = gradient / (row[:, None] * column[None] / row.mean()).sqrt()
        update /= max(1.0, update.square().mean().sqrt().item())
        expected = expected - min(0.01, step**-0.5) * expected.square().mean().sqrt().clamp(min=1e-3) * update
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_adafactor_leaves_the_row_of_an_unseen_token_alone() -> None:
    embedding = torch.nn.Embedding(7, 5)
    optimizer = build_optimizer(embedding, AdafactorConfig(name="adafactor"))
    before = embedding.weight.detach().clone()
    for tokens in ([0, 1, 2], [2, 3]):
        embedding(torch.tensor(tokens)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.isfinite(embedding.weight).all()
    assert torch.equal(embedding.weight[4:], before[4:])
    assert not (embedding.weight[:4] == before[:4]).any()


@needs_vectors
def test_muon_moves_the_layers_matrices_orthogonally_and_the_rest_as_adamw() -> None:
    shape = DecoderConfig(d_model=16, num_layers=1, num_heads=2, d_ff=16)
    models = [build_model(shape, vocab_size=30, seed=1) for _ in range(2)]
    muon = build_optimizer(models[0], MuonConfig(name="muon", weight_decay=0.0, adam_lr=0.01))
    adamw = build_optimizer(models[1], AdamWConfig(weight_decay=0.0, lr=0.01))
    before = {name: parameter.detach().clone() for name, parameter in models[0].named_parameters()}
    for model, optimizer, rate in ((models[0], muon, 0.02), (models[1], adamw, 0.01)):
        set_learning_rate(optimizer, rate)
        model(torch.arange(30)[None]).logsumexp(-1).square().sum().backward()
        optimizer.step()
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        if name.startswith("blocks.") and one.ndim > 1:
            singular = torch.linalg.svdvals((before[name] - one.detach()) / 0.02)
            # Newton-Schulz brings most singular values near 1, and none beyond.
            assert singular.max() < 1.4 and singular.median() > 0.6, name
            assert not torch.allclose(one, other)
        else:
            torch.testing.assert_close(one, other, msg=name)
