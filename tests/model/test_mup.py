"""muP: no change at the base width, and updates of equal size at other widths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from reptrain.config import RunConfig
from reptrain.config.load import validate
from reptrain.config.model import DecoderConfig
from reptrain.config.optimizers import AdamWConfig
from reptrain.errors import ConfigError
from reptrain.model import Decoder, build_model
from reptrain.training.optimizers import build_optimizer, set_learning_rate
from reptrain.training.regularize import set_weight_decay

VOCAB, BASE, RATE = 61, 64, 2e-2


def decoder(width: int, base: int | None, **changes: Any) -> Decoder:
    shape = {"d_model": width, "num_heads": width // 16, "d_ff": 3 * width, "num_layers": 2, "init_std": 0.1}
    config = DecoderConfig.model_validate(shape | {"mup_base_width": base} | changes)
    return build_model(config, vocab_size=VOCAB, seed=0)


def moved(model: Decoder, steps: int = 3) -> float:
    """Root mean square of the change of the logits after a few steps of Adam."""
    tokens = torch.randint(VOCAB, (4, 17), generator=torch.Generator().manual_seed(0))
    optimizer = build_optimizer(model, AdamWConfig(lr=RATE))
    with torch.no_grad():
        before = model(tokens[:, :-1])
    for _ in range(steps):
        set_learning_rate(optimizer, RATE)
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return (model(tokens[:, :-1]) - before).square().mean().sqrt().item()


def test_mup_at_the_base_width_changes_nothing() -> None:
    assert moved(decoder(BASE, BASE)) == moved(decoder(BASE, None))


@pytest.mark.parametrize("tied", [False, True])
def test_mup_updates_do_not_depend_on_the_width(tied: bool) -> None:
    narrow = moved(decoder(BASE, BASE, tie_embeddings=tied))
    wide, plain = (moved(decoder(8 * BASE, base, tie_embeddings=tied)) for base in (BASE, None))
    assert 0.5 < wide / narrow < 2
    assert plain / narrow > 3


def test_mup_scales_the_layers_matrices_alone() -> None:
    scaled, plain = (dict(decoder(4 * BASE, base).named_parameters()) for base in (BASE, None))
    for name, weight in plain.items():
        is_hidden = name.startswith("blocks.") and weight.ndim > 1
        torch.testing.assert_close(scaled[name], weight / 2 if is_hidden else weight, msg=name)
    optimizer = build_optimizer(decoder(4 * BASE, BASE), AdamWConfig(lr=RATE))
    set_learning_rate(optimizer, RATE)
    sizes = {group["lr"]: len(group["params"]) for group in optimizer.param_groups if group["decays"]}
    assert sizes == {RATE: 2, RATE / 4: 2 * 7}


@pytest.mark.parametrize(("scales", "expected"), [(False, 1.0), (True, 1 / 4)])
def test_mup_scales_weight_decay_only_on_request(scales: bool, expected: float) -> None:
    """A step with zero gradients only decays the weights."""
    decayed = {}
    for width in (BASE, 4 * BASE):
        model = decoder(width, BASE)
        optimizer = build_optimizer(model, AdamWConfig(lr=RATE, weight_decay=0.3, mup_scales_decay=scales))
        set_learning_rate(optimizer, RATE)
        set_weight_decay(optimizer, 0.5)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for name, parameter in model.named_parameters():
            kept = (parameter.detach() * before[name]).sum() / before[name].square().sum()
            decayed[width, name] = 1 - kept.item()
    for name, parameter in decoder(BASE, BASE).named_parameters():
        plain = RATE * 0.5 if parameter.ndim > 1 else 0.0
        is_hidden = name.startswith("blocks.") and parameter.ndim > 1
        assert decayed[BASE, name] == pytest.approx(plain, abs=1e-5), name
        wide = plain * (expected if is_hidden else 1)
        assert decayed[4 * BASE, name] == pytest.approx(wide, abs=1e-5), name


def test_mup_is_refused_with_muon_and_with_moe() -> None:
    data = {"data": {"store": "a"}, "model": {"mup_base_width": 64}}
    with pytest.raises(ConfigError, match=r"model\.mup_base_width needs optimizer\.name adamw"):
        validate(RunConfig, data | {"optimizer": {"name": "muon"}})
    with pytest.raises(ConfigError, match="mup_base_width must be null with moe"):
        validate(RunConfig, data | {"model": {"mup_base_width": 64, "moe": {"num_experts": 4}}})
