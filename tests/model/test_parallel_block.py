"""PaLM's layer: attention and MLP in parallel, against a definition in a few lines of torch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reptrain.config.model import DecoderConfig
from reptrain.model import DropoutContext, build_model
from reptrain.sizes import load_subject

PRESETS = Path(__file__).parents[2] / "configs" / "models"
PALM = {
    "parallel_block": True,
    "num_kv_heads": 1,
    "norm": "layernorm",
    "mlp": "swiglu",
    "tie_embeddings": True,
}
SMALL = PALM | {"d_model": 24, "num_layers": 2, "num_heads": 3, "head_dim": 16, "d_ff": 96, "init_std": 0.2}


def rotated(x_BTHN: Tensor) -> Tensor:
    half = x_BTHN.shape[-1] // 2
    angle = torch.arange(x_BTHN.shape[1])[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    cos, sin = (f(angle)[:, None].to(x_BTHN) for f in (torch.cos, torch.sin))
    first, second = x_BTHN.split(half, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def palm(p: dict[str, Tensor], tokens_BT: Tensor) -> Tensor:
    """Logits: y = x + MLP(norm(x)) + attention(norm(x)) in each layer."""
    x = p["embedding.weight"][tokens_BT]
    for layer in range(2):
        w = {name.split(".", 2)[2]: value for name, value in p.items() if name.startswith(f"blocks.{layer}.")}
        y = normed(x, w["attention_norm.weight"])
        q, k, v = (y @ w[f"attention.{name}.weight"].T for name in ("query", "key", "value"))
        q, k = rotated(q.unflatten(-1, (3, 16))), rotated(k[:, :, None])[:, :, 0]
        score = torch.einsum("bthn,bsn->bhts", q, k) / math.sqrt(16)
        past = torch.ones(score.shape[-2:]).tril() > 0
        share = score.masked_fill(~past, -math.inf).softmax(-1)
        mixed = torch.einsum("bhts,bsn->bthn", share, v).flatten(2) @ w["attention.output.weight"].T
        hidden = torch.nn.functional.silu(y @ w["mlp.gate.weight"].T) * (y @ w["mlp.up.weight"].T)
        x = x + hidden @ w["mlp.down.weight"].T + mixed
    return normed(x, p["norm.weight"]) @ p["embedding.weight"].T


def test_logits_are_those_of_the_definition() -> None:
    config = DecoderConfig.model_validate(SMALL)
    model = build_model(config, vocab_size=50, seed=1).double().eval()
    weights = {name: value.detach() for name, value in model.named_parameters()}
    assert not any("mlp_norm" in name for name in weights)
    tokens_BT = torch.randint(50, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens_BT), palm(weights, tokens_BT), rtol=1e-4, atol=1e-4)
    other = DecoderConfig.model_validate(SMALL | {"parallel_block": False})
    serial = build_model(other, vocab_size=50, seed=1).double().eval()
    with torch.no_grad():
        assert not torch.allclose(serial(tokens_BT), palm(weights, tokens_BT), atol=0.1)


@pytest.mark.parametrize("name", ["palm-8b", "palm-62b", "palm-540b"])
def test_presets_have_this_layer(name: str) -> None:
    model = load_subject(PRESETS / f"{name}.yaml").model
    assert model.model_dump(include=set(PALM)) == PALM


def test_parallel_branches_have_dropout_of_their_own() -> None:
    config = DecoderConfig.model_validate(SMALL | {"dropout": {"residual": 0.5}})
    model = build_model(config, vocab_size=50, seed=1).train()
    tokens_BT = torch.randint(50, (4, 11), generator=torch.Generator().manual_seed(0))
    both = model(tokens_BT, dropout=DropoutContext(seed=1, step=2, row_B=torch.arange(4)))
    alone = model(tokens_BT[2:3], dropout=DropoutContext(seed=1, step=2, row_B=torch.tensor([2])))
    torch.testing.assert_close(both[2:3], alone)
    assert not torch.allclose(both, model(tokens_BT))
