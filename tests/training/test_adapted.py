"""Encoder-decoders that start from the weights of a decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from interrupts import crash, interrupt_at

from reptrain.config import RunConfig
from reptrain.errors import ConfigError
from reptrain.hub.adapted_model import AdaptedModel
from reptrain.hub.saved_model import open_saved_model
from reptrain.model import EncoderDecoder
from reptrain.runs import RunFolder
from reptrain.runs.parent import read_parent
from reptrain.training.init_from import open_parent
from reptrain.training.loop import train
from reptrain.training.rebuilt_inputs import audit_inputs

Make = Callable[..., RunConfig]
DECODER = (
    "model.num_kv_heads=1",
    "data.unique_tokens=20000",
    "optimizer.lr=1e-2",
    "evaluate.every_fraction=1",
)
T5 = (
    "model={family: t5, d_model: 32, num_encoder_layers: 2, num_decoder_layers: 2, num_heads: 2,"
    " head_dim: 16, d_ff: 64, mlp: swiglu, tie_embeddings: true}"
)
SHORT = (T5, "objective.name=span_corruption", "train.total_tokens=6000", *DECODER[1:])


@pytest.fixture(scope="module")
def decoder(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "run"
    train(tiny(*DECODER, "train.total_tokens=4epochs"), path)
    return path


def adapted(decoder: Path, tiny: Make) -> tuple[AdaptedModel, EncoderDecoder]:
    config = tiny(*SHORT)
    parent = open_saved_model(decoder)
    found = open_parent(str(decoder), config.model, decoder / "none", parent.tokenizer())
    assert isinstance(found, AdaptedModel)
    model = found.load()
    assert isinstance(model, EncoderDecoder)
    return found, model


@torch.no_grad()
def test_every_weight_is_that_of_the_decoder(decoder: Path, tiny: Make) -> None:
    _, model = adapted(decoder, tiny)
    theirs = dict(open_saved_model(decoder).load().named_parameters())
    ours = dict(model.named_parameters())
    same = ("attention_norm.weight", "attention.output.weight", "mlp_norm.weight", "mlp.down.weight")
    for stack in ("encoder", "decoder"):
        for name in same:
            assert torch.equal(ours[f"{stack}.blocks.1.{name}"], theirs[f"blocks.1.{name}"])
        # Scores are divided by the root of the head's width in a decoder alone.
        query = theirs["blocks.1.attention.query.weight"] * 16**-0.5
        assert torch.equal(ours[f"{stack}.blocks.1.attention.query.weight"], query)
        # One head of keys serves both heads of queries.
        key = theirs["blocks.1.attention.key.weight"]
        assert torch.equal(ours[f"{stack}.blocks.1.attention.key.weight"], torch.cat([key, key]))
        assert not any(values.any() for name, values in ours.items() if "relative_bias" in name)
    assert torch.equal(
        ours["decoder.blocks.0.cross_attention.value.weight"], ours["decoder.blocks.0.attention.value.weight"]
    )
    assert torch.equal(ours["decoder.norm.weight"], theirs["norm.weight"] * 32**0.5)
    assert torch.equal(ours["encoder.norm.weight"], theirs["norm.weight"])
    assert torch.equal(ours["embedding.weight"], theirs["embedding.weight"])


@torch.no_grad()
def test_the_decoder_alone_computes_what_it_did_for_one_token(decoder: Path, tiny: Make) -> None:
    """With one position there is no rotation and no mask; without cross-attention the logits are equal."""
    _, model = adapted(decoder, tiny)
    for block in model.decoder.blocks:
        block.cross_attention.output.weight.zero_()
    tokens_B1 = torch.arange(40, 60)[:, None]
    one_B1 = torch.ones_like(tokens_B1)
    found = model(tokens_B1, tokens_B1, source_segments_BS=one_B1, segments_BT=one_B1)
    expected = open_saved_model(decoder).load()(tokens_B1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def final(run: Path) -> float:
    records = [record for record in RunFolder.open(run).metrics.records("valid") if record.set == "select"]
    return records[-1].nats


@pytest.mark.slow
def test_an_adapted_model_is_better_than_a_fresh_one_at_equal_tokens(tiny: Make, tmp_path: Path) -> None:
    """The gain grows with the training of the decoder: 0.09 nats after 400,000 tokens, 0.23 after 1M."""
    text = ("data.unique_tokens=200000", "data.window_tokens=64", "train.batch_windows=16")
    text = (*text, "optimizer.lr=5e-3", "evaluate.every_fraction=1", "evaluate.max_windows=64")
    wide = ("model.d_model=64", "model.num_heads=4", "model.d_ff=128", "model.tie_embeddings=false")
    train(tiny(*text, *wide, "train.total_tokens=700000"), tmp_path / "decoder")
    t5 = T5.replace("d_model: 32", "d_model: 64").replace("num_heads: 2", "num_heads: 4")
    t5 = t5.replace("d_ff: 64", "d_ff: 128").replace("tie_embeddings: true", "tie_embeddings: false")
    short = (*text, t5, "objective.name=span_corruption", "train.total_tokens=50000")
    train(tiny(*short), tmp_path / "fresh")
    train(tiny(*short, f"init_from={tmp_path / 'decoder'}"), tmp_path / "adapted")
    assert final(tmp_path / "adapted") < final(tmp_path / "fresh") - 0.03


def test_an_adapted_run_records_its_parent(decoder: Path, tiny: Make, tmp_path: Path) -> None:
    train(tiny(*SHORT, f"init_from={decoder}", "train.total_tokens=1000"), tmp_path / "adapted")
    record = read_parent(tmp_path / "adapted")
    assert record is not None and record.changed == {"family": ("decoder", "t5")}
    assert record.weights == open_saved_model(decoder).fingerprint()
    assert audit_inputs(tmp_path / "adapted").exact


def test_an_adapted_run_resumes_with_the_same_bits(
    decoder: Path, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*SHORT, f"init_from={decoder}", "train.total_tokens=2500")
    train(tiny(*settings), tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 4, crash)
        train(tiny(*settings), tmp_path / "run")
    train(tiny(*settings), tmp_path / "run")
    whole, resumed = (
        [record.loss_nats for record in RunFolder.open(tmp_path / name).metrics.records("train")]
        for name in ("whole", "run")
    )
    assert whole == resumed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.num_encoder_layers=1", "model.num_encoder_layers: must be 2"),
        ("model.mlp=geglu", "model.mlp: must be swiglu"),
        ("model.tie_embeddings=false", "model.tie_embeddings: must be True"),
        ("model.head_dim=8", "model.head_dim: must be 16"),
        ("model.moe={num_experts: 2}", "model.moe: must be None"),
    ],
)
def test_another_shape_is_refused(change: str, words: str, decoder: Path, tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        train(tiny(*SHORT, f"init_from={decoder}", change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_decoder_with_parts_that_t5_lacks_is_refused(tiny: Make, tmp_path: Path) -> None:
    few = ("train.total_tokens=400", "evaluate.every_fraction=1", "evaluate.max_windows=2")
    train(tiny(*few, "model.norm=layernorm"), tmp_path / "gpt")
    with pytest.raises(ConfigError, match="must have norm rmsnorm to become an encoder-decoder"):
        train(tiny(*SHORT, f"init_from={tmp_path / 'gpt'}"), tmp_path / "run")
