"""Gopher's layer: relative positions of Transformer-XL, against a definition in a few lines of torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reptrain.config.model import DecoderConfig, Recompute
from reptrain.config.schema import ExampleShape
from reptrain.model import Decoder, DropoutContext, build_model
from reptrain.model.init import parameter_groups
from reptrain.sizes import count_parameters, forward_flops, load_subject
from reptrain.training.recorder import stated_attention
from reptrain_kernels.implementation import assume

PRESETS = Path(__file__).parents[2] / "configs" / "models"
GOPHER: dict[str, Any] = {"positions": "relative", "norm": "rmsnorm", "mlp": "gelu", "tie_embeddings": True}
SMALL: dict[str, Any] = GOPHER | {
    "d_model": 24,
    "num_layers": 2,
    "num_heads": 3,
    "head_dim": 16,
    "d_ff": 96,
    "init_std": 0.2,
}


def encoded(distance: int, width: int) -> Tensor:
    """Sines, then cosines, of a distance."""
    angles = [distance / 10_000 ** (2 * m / width) for m in range(width // 2)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def gopher(p: dict[str, Tensor], tokens_T: Tensor, seen: Callable[[int, int], bool]) -> Tensor:
    """Logits of one row: the four terms of the score, one pair of positions at a time."""
    T, (H, N), width = len(tokens_T), (3, 16), 24
    x = p["embedding.weight"][tokens_T]
    for layer in range(2):
        w = {name.split(".", 2)[2]: value for name, value in p.items() if name.startswith(f"blocks.{layer}.")}
        y = normed(x, w["attention_norm.weight"])
        q, k, v = ((y @ w[f"attention.{name}.weight"].T).view(T, H, N) for name in ("query", "key", "value"))
        content = w["attention.relative.content_bias"].view(H, N)
        position = w["attention.relative.position_bias"].view(H, N)
        score = torch.full((H, T, T), -math.inf, dtype=torch.float64)
        for i in range(T):
            for j in range(T):
                far = (w["attention.relative.key.weight"] @ encoded(i - j, width)).view(H, N)
                terms = (q[i] * k[j], q[i] * far, content * k[j], position * far)
                if seen(i, j):
                    score[:, i, j] = torch.stack(terms).sum(0).sum(-1) / math.sqrt(N)
        mixed = torch.einsum("hts,shn->thn", score.softmax(-1), v).flatten(1)
        x = x + mixed @ w["attention.output.weight"].T
        hidden = normed(x, w["mlp_norm.weight"]) @ w["mlp.up.weight"].T
        x = x + torch.nn.functional.gelu(hidden, approximate="tanh") @ w["mlp.down.weight"].T
    return normed(x, p["norm.weight"]) @ p["embedding.weight"].T


def model_of(**changes: object) -> Decoder:
    """A model whose two vectors are not 0, as they are at first."""
    model = build_model(DecoderConfig.model_validate(SMALL | changes), vocab_size=50, seed=1)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith(("content_bias", "position_bias")):
            assert not parameter.any()
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return model


def tokens(num_positions: int = 7) -> Tensor:
    return torch.randint(50, (2, num_positions), generator=torch.Generator().manual_seed(0))


CASES: dict[str, tuple[dict[str, Tensor], Callable[[int, int], bool]]] = {
    "causal": ({}, lambda i, j: j <= i),
    "prefix": ({"prefix_B": torch.tensor([4, 4])}, lambda i, j: j <= i or j < 4),
    "bidirectional": ({"prefix_B": torch.tensor([7, 7])}, lambda i, j: True),
    "documents": (
        {"segments_BT": torch.tensor([[1, 1, 1, 2, 2, 2, 2]] * 2)},
        lambda i, j: j <= i and (i < 3) == (j < 3),
    ),
}


@pytest.mark.parametrize("dropout", [{}, {"attention": 1e-9}], ids=["fused", "spelled out"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_definition(case: str, dropout: dict[str, float]) -> None:
    inputs, seen = CASES[case]
    model = model_of(dropout=dropout).double().train(bool(dropout))
    weights = {name: value.detach() for name, value in model.named_parameters()}
    context = DropoutContext(seed=1, step=2, row_B=torch.arange(2)) if dropout else None
    with torch.no_grad():
        logits = model(tokens(), dropout=context, **inputs)
    for row in range(2):
        torch.testing.assert_close(logits[row], gopher(weights, tokens()[row], seen), rtol=1e-4, atol=1e-4)


def test_one_position_is_the_definition_too() -> None:
    model = model_of().double().eval()
    weights = {name: value.detach() for name, value in model.named_parameters()}
    for prefix_B in (None, torch.tensor([1, 1])):
        with torch.no_grad():
            logits = model(tokens(1), prefix_B=prefix_B)
        expected = gopher(weights, tokens(1)[0], lambda i, j: True)
        torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [0.0, 1e-9], ids=["fused", "spelled out"])
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_low_precision_is_close_to_full_precision(how: str, rate: float) -> None:
    model = model_of(dropout={"attention": rate}).train()
    context = DropoutContext(seed=1, step=2, row_B=torch.arange(2))
    with torch.no_grad():
        expected = model(tokens(), dropout=context)
        if how == "weights":
            model = model.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            found = model(tokens(), dropout=context)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.1 * expected.std()


def test_every_parameter_has_a_gradient_and_vectors_do_not_decay() -> None:
    model = model_of(num_kv_heads=1)
    model(tokens()).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    decayed, not_decayed = parameter_groups(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    vectors = {names[p] for p in not_decayed["params"]}
    assert {"blocks.0.attention.relative.content_bias", "blocks.1.attention.relative.position_bias"} < vectors
    assert "blocks.0.attention.relative.key.weight" in {names[p] for p in decayed["params"]}


@pytest.mark.parametrize(("name", "billions"), [("gopher", 280), ("chinchilla", 70)])
def test_totals_are_the_published_ones(name: str, billions: float) -> None:
    model = load_subject(PRESETS / f"{name}.yaml").model
    assert isinstance(model, DecoderConfig)
    assert model.model_dump(include=set(GOPHER)) == GOPHER
    assert count_parameters(model, 32_000).total / 1e9 == pytest.approx(billions, rel=0.002)


def test_flops_of_a_row_are_those_that_torch_counts() -> None:
    config = DecoderConfig.model_validate(GOPHER | {"d_model": 64, "num_layers": 3, "num_heads": 4})
    model = build_model(config, vocab_size=100, seed=0)
    counts = []
    # The projections of the distances do not depend on the rows.
    for num_rows in (1, 3):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
            model(torch.ones(num_rows, 40, dtype=torch.long))
        counts.append(counted.get_total_flops())
    forward = forward_flops(config, 100, ExampleShape(0, 40))
    # One distance more than keys, of the next row: 1 / 40 of a third of the scores.
    assert (counts[1] - counts[0]) / 2 == pytest.approx(forward.total + forward.scores / 120, rel=1e-3)


def test_triton_is_never_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    config = DecoderConfig.model_validate(SMALL)
    with assume(impl="triton"):
        assert stated_attention(config, torch.device("cpu"), 64) == "torch"
    assert "the triton attention kernel has no relative positions" in capsys.readouterr().err


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputed_layers_have_the_same_gradients(recompute: Recompute) -> None:
    gradients = []
    for how in ("none", recompute):
        model = model_of().train()
        model.recompute = how
        model(tokens()).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"d_model": 23}, "d_model must be even where positions is relative; 23 is not"),
        ({"mup_base_width": 24}, "mup_base_width must be null where positions is relative"),
        ({"max_positions": 64}, "max_positions must be set where positions is learned, and nowhere else"),
        ({"rope_scaling": {"name": "linear", "factor": 2}}, "rope_scaling must be null where positions is"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, object], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        DecoderConfig.model_validate(SMALL | changes)
