"""Initial weights and optimizer groups."""

from __future__ import annotations

import hashlib
import os

import pytest
import torch

from reptrain.config.model import DecoderConfig, T5Config
from reptrain.errors import ConfigError
from reptrain.model import Decoder, EncoderDecoder, build_model, parameter_groups
from reptrain.model.init import check_memory
from reptrain.sizes import count_parameters

WIDE = DecoderConfig(d_model=128, num_layers=3, num_heads=4, d_ff=256, init_std=0.05)
T5 = T5Config(
    family="t5", d_model=64, num_encoder_layers=1, num_decoder_layers=2, num_heads=3, head_dim=32, d_ff=200
)


def test_build_model_depends_on_seed_and_names_alone() -> None:
    model = build_model(WIDE, vocab_size=100, seed=1)
    torch.rand(5)
    again, deeper = (
        build_model(c, vocab_size=100, seed=1) for c in (WIDE, WIDE.model_copy(update={"d_ff": 64}))
    )
    other = build_model(WIDE, vocab_size=100, seed=2)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, again.get_parameter(name))
        if weight.ndim == 2:
            assert not torch.equal(weight, other.get_parameter(name))
            if ".mlp." not in name:
                assert torch.equal(weight, deeper.get_parameter(name))


def test_build_model_gives_each_parameter_its_own_values() -> None:
    model = build_model(WIDE, vocab_size=100, seed=1)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    assert len({hashlib.sha256(p.detach().numpy().tobytes()).digest() for p in matrices}) == len(matrices)


def test_build_model_scales_projections_into_the_residual_stream() -> None:
    model = build_model(WIDE, vocab_size=100, seed=1)
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32 and weight.device.type == "cpu"
        if weight.ndim == 1:
            assert (weight == 1).all()
            continue
        into_residual = name.endswith(("attention.output.weight", "mlp.down.weight"))
        expected = 0.05 / 6**0.5 if into_residual else 0.05
        assert weight.std().item() == pytest.approx(expected, rel=0.04), name
        assert abs(weight.mean().item()) < 5 * expected / weight.numel() ** 0.5


def test_build_model_gives_t5_the_published_standard_deviations() -> None:
    expected = {
        "embedding": 1.0,
        "table": 64**-0.5,
        "query": (64 * 32) ** -0.5,
        "key": 64**-0.5,
        "value": 64**-0.5,
        "output": (3 * 32) ** -0.5,
        "gate": 64**-0.5,
        "up": 64**-0.5,
        "down": 200**-0.5,
        "head": 64**-0.5,
    }
    model = build_model(T5, vocab_size=100, seed=1)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert (weight == 1).all()
        else:
            std = expected[name.split(".")[-2]]
            # Four standard errors: a table of relative biases has 96 elements.
            assert weight.std().item() == pytest.approx(std, rel=4 / (2 * weight.numel()) ** 0.5), name


def test_build_model_scales_the_matrices_of_t5_and_neither_embedding_nor_biases() -> None:
    plain, scaled = (
        build_model(config, vocab_size=100, seed=1)
        for config in (T5, T5.model_copy(update={"init_scale": 0.25}))
    )
    for name, weight in plain.named_parameters():
        kept = weight.ndim == 1 or "embedding" in name or "relative_bias" in name
        expected = weight if kept else weight / 2
        torch.testing.assert_close(scaled.get_parameter(name), expected, msg=name)


@pytest.mark.parametrize(
    "config", [DecoderConfig(tie_embeddings=True), T5.model_copy(update={"tie_embeddings": True})]
)
def test_build_model_ties_the_head_to_the_embedding(config: DecoderConfig | T5Config) -> None:
    model = build_model(config, vocab_size=100, seed=1)
    assert model.head.weight is model.embedding.weight
    assert (model.head.weight != 0).any()


def test_parameter_groups_decay_matrices_only_and_are_complete() -> None:
    model: Decoder = build_model(DecoderConfig(tie_embeddings=True), vocab_size=100, seed=1)
    decayed, kept = parameter_groups(model)
    assert decayed["decays"] and not kept["decays"] and kept["weight_decay"] == 0
    norms = {id(p) for name, p in model.named_parameters() if "norm" in name}
    assert {id(p) for p in kept["params"]} == norms
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))
    assert any(p is model.embedding.weight for p in decayed["params"])


def test_parameter_groups_of_t5_leave_norms_and_position_biases_undecayed() -> None:
    model: EncoderDecoder = build_model(T5, vocab_size=100, seed=1)
    decayed, kept = parameter_groups(model)
    # Two norms per encoder layer, three per decoder layer; one norm and one table per stack.
    assert len(kept["params"]) == 2 + 2 * 3 + 2 + 2
    assert any(p is model.encoder.relative_bias.table.weight for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_memory_of_a_machine_is_shared_by_its_ranks() -> None:
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wide = DecoderConfig(d_model=4096, num_layers=1, num_heads=32, d_ff=16384)
    layers = int(0.7 * machine_bytes / (4 * count_parameters(wide, 100).total))
    config = wide.model_copy(update={"num_layers": layers})
    check_memory(config, 100)
    check_memory(config, 100, num_ranks=2, on_host=2)
    with pytest.raises(ConfigError, match="for the 2 ranks on this machine"):
        check_memory(config, 100, on_host=2)
    with pytest.raises(ConfigError, match="for the 4 ranks on this machine"):
        check_memory(config, 100, num_ranks=2, on_host=4)
