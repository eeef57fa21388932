"""T5 against transformers: the same logits and gradients from the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reptrain.config.model import T5Config
from reptrain.model import EncoderDecoder, build_model
from reptrain.model.relative_bias import Buckets

transformers = pytest.importorskip("transformers", reason="transformers is not installed: no parity")

VOCAB, S, T = 61, 150, 37
SHAPE = {"d_model": 24, "num_heads": 3, "head_dim": 16, "d_ff": 40}
LAYERS = {"num_encoder_layers": 2, "num_decoder_layers": 3}
VERSIONS: dict[str, dict[str, Any]] = {
    "1.1": {"mlp": "geglu", "tie_embeddings": False},
    "1.0": {"mlp": "relu", "tie_embeddings": True},
}
# Rows with padding in the source, in the targets, and in both.
SOURCE_LENGTHS, TARGET_LENGTHS = torch.tensor([S, 90, S, 3]), torch.tensor([T, T, 20, 1])
NAMES = {
    "embedding": "shared",
    "relative_bias.table": "block.0.layer.0.SelfAttention.relative_attention_bias",
    "query": "q",
    "key": "k",
    "value": "v",
    "output": "o",
    "attention_norm": "layer.0.layer_norm",
    "attention": "layer.0.SelfAttention",
    "cross_norm": "layer.1.layer_norm",
    "cross_attention": "layer.1.EncDecAttention",
    "blocks": "block",
    "norm": "final_layer_norm",
    "head": "lm_head",
    "down": "wo",
}


def their_name(name: str, *, gated: bool) -> str:
    """Name in transformers of one of our parameters."""
    mlp = "layer.2" if name.startswith("decoder") else "layer.1"
    names = NAMES | {"mlp_norm": f"{mlp}.layer_norm", "mlp": f"{mlp}.DenseReluDense"}
    names |= {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    name = name.replace("relative_bias.table", NAMES["relative_bias.table"])
    return ".".join(names.get(part, part) for part in name.split("."))


def pair(version: str) -> tuple[EncoderDecoder, Any]:
    """Our model and that of transformers, with equal weights."""
    config = T5Config(family="t5", **SHAPE, **LAYERS, **VERSIONS[version])
    ours = build_model(config, vocab_size=VOCAB, seed=4)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
            if "bias" in name or "query" in name:
                parameter.mul_(3)  # So that attention is far from uniform.
    theirs_config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=SHAPE["d_model"],
        d_kv=SHAPE["head_dim"],
        d_ff=SHAPE["d_ff"],
        num_heads=SHAPE["num_heads"],
        num_layers=LAYERS["num_encoder_layers"],
        num_decoder_layers=LAYERS["num_decoder_layers"],
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu" if version == "1.1" else "relu",
        tie_word_embeddings=config.tie_embeddings,
    )
    theirs = transformers.T5ForConditionalGeneration(theirs_config)
    if not config.tie_embeddings:
        # Version 5 reads from the argument whether to scale the output, and ties new models regardless.
        theirs.lm_head.weight = torch.nn.Parameter(torch.empty_like(theirs.lm_head.weight))
    weights = {
        their_name(name, gated=config.mlp == "geglu"): parameter
        for name, parameter in ours.named_parameters()
    }
    _, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in weights.values())
    return ours, theirs


def examples() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Source and inputs, and whether each position is a token."""
    generator = torch.Generator().manual_seed(1)
    source_BS, inputs_BT = (torch.randint(VOCAB, (4, n), generator=generator) for n in (S, T))
    is_source_BS = torch.arange(S) < SOURCE_LENGTHS[:, None]
    is_input_BT = torch.arange(T) < TARGET_LENGTHS[:, None]
    return source_BS, inputs_BT, is_source_BS.long(), is_input_BT.long()


@pytest.mark.parametrize("version", VERSIONS)
def test_encoder_decoder_logits_and_gradients_match_transformers(version: str) -> None:
    ours, theirs = pair(version)
    source_BS, inputs_BT, is_source_BS, is_input_BT = examples()
    logits_BTV = ours(source_BS, inputs_BT, source_segments_BS=is_source_BS, segments_BT=is_input_BT)
    expected_BTV = theirs(
        input_ids=source_BS,
        attention_mask=is_source_BS,
        decoder_input_ids=inputs_BT,
        decoder_attention_mask=is_input_BT,
    ).logits
    counted = is_input_BT.bool()
    assert expected_BTV[counted].std() > 0.3
    torch.testing.assert_close(logits_BTV[counted], expected_BTV[counted], rtol=0, atol=1e-5)

    for logits in (logits_BTV, expected_BTV):
        torch.nn.functional.cross_entropy(logits[counted], inputs_BT[counted]).backward()
    for name, parameter in ours.named_parameters():
        expected = theirs.get_parameter(their_name(name, gated=version == "1.1")).grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (32, 50), (16, 1000), (4, 3)])
def test_buckets_are_those_of_transformers(num_buckets: int, max_distance: int, bidirectional: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    offset = torch.arange(-1500, 1500)
    expected = T5Attention._relative_position_bucket(offset, bidirectional, num_buckets, max_distance)
    buckets = Buckets(num_buckets=num_buckets, max_distance=max_distance, bidirectional=bidirectional)
    assert torch.equal(buckets(offset), expected)
