"""Router losses and their coefficients against transformers' own loss functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: no parity")

from their_models import make, ours_from, save
from torch import Tensor

from reptrain.config.model import MoEConfig
from reptrain.hub import ModelFolder, model_settings
from reptrain.model import Routing

B, T, S = 3, 12, 20


def tokens(columns: int) -> Tensor:
    return torch.randint(2, 64, (B, columns), generator=torch.Generator().manual_seed(columns))


def our_router_losses(model: Any, *given: Tensor, group_windows: int, **more: Tensor) -> float:
    """Router losses of a step with one target per position."""
    for _, layer in model.sparse_layers():
        config = layer.config.model_copy(update={"group_windows": group_windows})
        layer.config = layer.router.config = config
    routing = Routing(torch.full((B,), T))
    model(*given, **more, routing=routing)
    assert routing.loss_nats is not None
    return float(routing.loss_nats) / (B * T)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("top_k", [1, 2])
def test_mixtral_coefficient_gives_the_loss_of_transformers(layers: int, top_k: int, tmp_path: Path) -> None:
    # The models' modules take a second to import: not when tests are collected.
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func as mixtral_balance

    more = {"num_hidden_layers": layers, "router_aux_loss_coef": 0.3}
    theirs = make("mixtral", **more)
    theirs.config.num_experts_per_tok = theirs.num_experts_per_tok = top_k
    for layer in theirs.modules():
        if hasattr(layer, "top_k"):
            layer.top_k = top_k
    ours, given = ours_from(save(theirs, tmp_path)), tokens(T)
    with torch.no_grad():
        found = theirs(input_ids=given, output_router_logits=True)
        # Theirs takes one mean over the tokens of all layers: ours is the mean of each layer's.
        of_layers = [mixtral_balance((logits,), 4, top_k) for logits in found.router_logits]
        if layers == 1:
            assert float(of_layers[0]) == pytest.approx(float(mixtral_balance(found.router_logits, 4, top_k)))
        expected = 0.3 * float(torch.stack(of_layers).mean())
        assert our_router_losses(ours, given, group_windows=B) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sparse", [1, 2])
def test_switch_coefficients_give_the_loss_of_transformers(sparse: int, tmp_path: Path) -> None:
    from transformers.models.switch_transformers import modeling_switch_transformers as switch

    more = {"num_layers": 2 * sparse, "num_decoder_layers": 2 * sparse, "num_sparse_encoder_layers": sparse,
            "num_sparse_decoder_layers": sparse}  # fmt: skip
    theirs = make("switch", **more, router_aux_loss_coef=0.3, router_z_loss_coef=0.02)
    ours, source, inputs = ours_from(save(theirs, tmp_path)), tokens(S), tokens(T)
    with torch.no_grad():
        labels = torch.zeros_like(inputs)
        found = theirs(input_ids=source, decoder_input_ids=inputs, labels=labels, output_router_logits=True)
        expected = 0.0
        for name in ("encoder", "decoder"):
            logits = getattr(found, f"{name}_router_logits")
            of_layers = [switch.load_balancing_loss_func(x.softmax(-1), x.argmax(-1)) for x in logits]
            balance = torch.stack(of_layers).mean()
            if sparse == 1:
                assert float(balance) == pytest.approx(float(getattr(found, f"{name}_aux_loss")))
            z = getattr(found, f"{name}_z_loss")
            assert float(z) == pytest.approx(float(switch.router_z_loss_func(torch.cat(tuple(logits), 1))))
            expected += float(0.3 * balance + 0.02 * z)
        more = {"source_segments_BS": torch.ones_like(source), "segments_BT": torch.ones_like(inputs)}
        added = our_router_losses(ours, source, inputs, group_windows=1, **more)
        assert added == pytest.approx(expected, rel=1e-4)


def test_published_coefficient_of_mixtral_becomes_the_preset(tmp_path: Path) -> None:
    """8x7B: 0.02 times a mean over 32 layers (2 at balance) equals 0.00125 times a sum (of 1 at balance)."""
    from reptrain.sizes import load_subject

    preset = load_subject(Path(__file__).parents[2] / "configs/models/mixtral-8x7b.yaml").model
    assert preset.moe is not None and preset.moe.balance_coefficient == 0.00125
    assert model_settings(preset, rows=32000)["router_aux_loss_coef"] == 0.02


@pytest.mark.parametrize("kind", ["mixtral", "switch"])
@pytest.mark.parametrize("coefficient", [0.001, 0.01, 0.02, 0.3])
def test_coefficients_survive_export_and_import(kind: str, coefficient: float, tmp_path: Path) -> None:
    more = {"router_aux_loss_coef": coefficient}
    more |= {"num_hidden_layers": 3} if kind == "mixtral" else {"router_z_loss_coef": coefficient / 10}
    theirs = make(kind, **more)
    config = ModelFolder.open(save(theirs, tmp_path)).config
    settings = model_settings(config, rows=64)
    assert {key: settings[key] for key in more} == more


def test_coefficients_of_stacks_of_different_depth_keep_their_sum(tmp_path: Path) -> None:
    more = {"num_layers": 2, "num_decoder_layers": 6, "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 3, "router_aux_loss_coef": 0.1}  # fmt: skip
    moe = ModelFolder.open(save(make("switch", **more), tmp_path)).config.moe
    # At balance theirs is .1 for each stack.
    assert isinstance(moe, MoEConfig) and (1 + 3) * moe.balance_coefficient == pytest.approx(0.2)
