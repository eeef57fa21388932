"""Optimizers other than AdamW: their formulas, their state on resume, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupts import crash, interrupt_at
from safetensors.torch import load_file
from torch._inductor.cpu_vec_isa import pick_vec_isa

from reptrain.auditing.audit import audit
from reptrain.config import RunConfig
from reptrain.config.model import DecoderConfig
from reptrain.config.optimizers import AdafactorConfig, AdamWConfig, MuonConfig
from reptrain.errors import ConfigError
from reptrain.model import build_model
from reptrain.runs import RunFolder
from reptrain.training.loop import train
from reptrain.training.optimizers import build_optimizer, set_learning_rate
from reptrain.training.regularize import set_weight_decay

MOE = "model.moe={num_experts: 4, d_ff: 32}"
T5_RECIPE = (
    "optimizer={name: adafactor, min_dim_to_factor: 16, beta1: 0.5}",
    "schedule.name=constant",
    "schedule.warmup_fraction=0",
)
# DeepSpeed compiles its Muon, which takes longer than all other tests of this file together.
EAGER_OR_COMPILED = ["force_eager", pytest.param("default", marks=pytest.mark.slow)]
OPTIMIZERS = {"adafactor": T5_RECIPE, "muon": ("optimizer.name=muon", "optimizer.weight_decay=0.01")}


@pytest.fixture(params=EAGER_OR_COMPILED)
def muon_stance(request: pytest.FixtureRequest) -> Iterator[None]:
    """Muon without compilation; compiled too where slow tests run."""
    # It starts interpreters to find out.
    if request.param == "default" and not pick_vec_isa():
        pytest.skip("torch.compile fails on a CPU without AVX2")
    with torch.compiler.set_stance(request.param):
        yield


def test_muon_learns_and_is_exact_on_resume(
    muon_stance: None, tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_resume("muon", tiny, tmp_path, monkeypatch)


def test_adafactor_learns_and_is_exact_on_resume(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_resume("adafactor", tiny, tmp_path, monkeypatch)


def check_resume(
    name: str, tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run learns, and one that was interrupted ends with the same losses and states."""
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
    factors = {"row_var", "col_var", "variance", "momentum"}
    expected = factors if name == "adafactor" else {"momentum_buffer", "exp_avg"}
    assert expected < kinds
    assert audit(broken.path).exact


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("stage", [1, 3])
def test_it_is_refused_where_zero_cuts_matrices(
    name: str, stage: int, tiny: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.name {name} needs train.zero_stage 0, and {stage}"):
        tiny(*OPTIMIZERS[name], f"train.zero_stage={stage}")


def one_weight(shape: tuple[int, ...]) -> tuple[torch.nn.Module, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(0.3 * torch.randn(shape, generator=generator))
    return model, model.weight


@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize(
    ("shape", "factored"),
    [((128, 130), True), ((127, 300), False), ((3, 128, 130), True), ((3, 127, 130), False), ((200,), False)],
)
def test_adafactor_follows_t5x(shape: tuple[int, ...], factored: bool, beta1: float) -> None:
    """In NumPy and double precision: t5x/adafactor.py, the experts of a layer as matrices of their own."""
    model, weight = one_weight(shape)
    weight_decay = 0.3 if len(shape) > 1 else 0.0
    config = AdafactorConfig(name="adafactor", beta1=beta1, weight_decay=weight_decay)
    optimizer = build_optimizer(model, config)
    expected = weight.detach().double().numpy().reshape(-1, *shape[-2:]).copy()
    row = column = second = momentum = np.zeros(1)
    axes, generator = tuple(range(1, expected.ndim)), np.random.default_rng(1)
    for step in range(1, 4):
        gradient = generator.normal(size=expected.shape) * np.geomspace(0.01, 1, shape[-1])
        weight.grad = torch.from_numpy(gradient.reshape(shape)).float()
        optimizer.step()
        keep, square = 1 - step**-0.8, gradient**2 + 1e-30
        if factored:
            row = keep * row + (1 - keep) * square.mean(-1, keepdims=True)
            column = keep * column + (1 - keep) * square.mean(-2, keepdims=True)
            update = gradient * (row / row.mean(-2, keepdims=True)) ** -0.5 * column**-0.5
        else:
            second = keep * second + (1 - keep) * square
            update = gradient * second**-0.5
        update = update / np.maximum(1, np.sqrt((update**2).mean(axes, keepdims=True)))
        scale = np.maximum(1e-3, np.sqrt((expected**2).mean(axes, keepdims=True)))
        update = min(0.01, step**-0.5) * scale * update
        momentum = beta1 * momentum + (1 - beta1) * update
        expected = (1 - 0.01 * weight_decay) * expected - momentum
        found = weight.detach().numpy().reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_adafactor_without_a_smallest_side_is_that_of_torch() -> None:
    (ours, weight), (theirs, other) = one_weight((20, 30)), one_weight((20, 30))
    mine = build_optimizer(ours, AdafactorConfig(name="adafactor", min_dim_to_factor=1))
    its = torch.optim.Adafactor(theirs.parameters(), lr=0.01, eps=(1e-18, 1e-3), weight_decay=0.0)
    for step in range(3):
        gradient = torch.randn(20, 30, generator=torch.Generator().manual_seed(step))
        for parameter, optimizer in ((weight, mine), (other, its)):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(weight, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smallest", [1, 128])
def test_adafactor_leaves_the_row_of_an_unseen_token_alone(smallest: int) -> None:
    embedding = torch.nn.Embedding(7, 5)
    config = AdafactorConfig(name="adafactor", min_dim_to_factor=smallest)
    optimizer = build_optimizer(embedding, config)
    before = embedding.weight.detach().clone()
    for tokens in ([0, 1, 2], [2, 3]):
        embedding(torch.tensor(tokens)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.isfinite(embedding.weight).all()
    assert torch.equal(embedding.weight[4:], before[4:])
    assert not (embedding.weight[:4] == before[:4]).any()


def test_muon_moves_the_layers_matrices_orthogonally_and_the_rest_as_adamw(muon_stance: None) -> None:
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


def muon_steps(adjust: str, *, gradient: float, weight_decay: float) -> dict[str, torch.Tensor]:
    """What one step of Muon makes of each matrix of a layer, experts too, over what it was."""
    moe = {"num_experts": 2, "top_k": 1, "d_ff": 64}
    shape = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 48, "moe": moe}
    model = build_model(DecoderConfig.model_validate(shape), vocab_size=30, seed=1)
    data = {"name": "muon", "lr": 0.02, "weight_decay": 0.7, "adjust_lr": adjust}
    optimizer = build_optimizer(model, MuonConfig.model_validate(data))
    set_learning_rate(optimizer, 0.02)
    set_weight_decay(optimizer, weight_decay)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for index, parameter in enumerate(model.parameters()):
        drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        parameter.grad = gradient * drawn
    # Compiling for each shape takes a minute.
    with torch.compiler.set_stance("force_eager"):
        optimizer.step()
    moved = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    if gradient == 0:
        moved = {name: change / before[name] for name, change in moved.items()}
    return {name: x for name, x in moved.items() if name.startswith("blocks.") and x.ndim > 1}


def test_muon_matches_the_updates_of_adamw() -> None:
    original = muon_steps("original", gradient=1, weight_decay=0)
    matched = muon_steps("match_rms_adamw", gradient=1, weight_decay=0)
    assert {tuple(x.shape[-2:]) for x in original.values()} >= {(16, 16), (64, 16), (16, 64)}
    for name, change in matched.items():
        rows, columns = change.shape[-2:]
        # The orthogonal matrix alone, as DeepSpeed scales it.
        orthogonal = original[name] / max(1, rows / columns) ** 0.5
        torch.testing.assert_close(change, 0.2 * max(rows, columns) ** 0.5 * orthogonal, msg=name)
        # Newton-Schulz brings singular values only near 1.
        assert 0.2 * 0.6 < (change / 0.02).square().mean().sqrt() < 0.2 * 1.3, name


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_decays_as_configured_whatever_the_size_of_updates(adjust: str) -> None:
    for name, change in muon_steps(adjust, gradient=0, weight_decay=0.5).items():
        torch.testing.assert_close(
            change, torch.full_like(change, -0.02 * 0.5), rtol=1e-3, atol=1e-5, msg=name
        )
