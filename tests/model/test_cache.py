"""Decoding with a cache: the logits of the full forward pass, for rows of different lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reptrain.config.model import DecoderConfig, T5Config
from reptrain.model import build_model
from reptrain.model.cache import Cache

VOCAB, LENGTHS = 61, [9, 4, 1]
SMALL: dict[str, Any] = {"d_model": 32, "num_heads": 4, "d_ff": 48, "num_layers": 2, "init_std": 0.2}
MOE: dict[str, Any] = {"num_experts": 4}
DECODERS: dict[str, dict[str, Any]] = {
    "dense": {"num_kv_heads": 2},
    "sparse": {"moe": MOE},
    "shared": {"num_layers": 4, "num_stored_layers": 2, "tie_embeddings": True},
    "window": {"sliding_window": 6, "head_dim": 12, "attention_bias": "qkv"},
    "scaled": {"rope_scaling": {"name": "linear", "factor": 3.0}},
    "relative positions": {"positions": "relative", "mlp": "gelu", "num_kv_heads": 1},
    "gpt": {"norm": "layernorm", "positions": "learned", "max_positions": 64, "mlp": "gelu", "bias": True},
}
T5: dict[str, Any] = {
    "family": "t5", "d_model": 32, "num_heads": 2, "head_dim": 16, "d_ff": 48, "num_encoder_layers": 2,
    "num_decoder_layers": 2,
}  # fmt: skip
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "dense": {},
    "1.0": {"mlp": "relu", "tie_embeddings": True},
    "sparse": {"moe": MOE | {"every": 2}},
    "shared": {"num_stored_encoder_layers": 1, "num_stored_decoder_layers": 1},
    "biases by layer": {"relative_bias_per_layer": True, "mlp": "swiglu"},
}


def rows(lengths: list[int], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    is_token_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids_BT = torch.randint(VOCAB, is_token_BT.shape, generator=generator)
    # Padding has an id of its own, so that attending to it changes the logits.
    return ids_BT, is_token_BT


def check(actual_B1V: Tensor, expected_BTV: Tensor, last_B: Tensor) -> None:
    expected_BV = expected_BTV[torch.arange(len(last_B)), last_B]
    assert expected_BV.std() > 0.3
    torch.testing.assert_close(actual_B1V[:, 0], expected_BV, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_decoder_with_cache_matches_full_forward_pass(kind: str) -> None:
    config = DecoderConfig(**SMALL | DECODERS[kind])
    model = build_model(config, vocab_size=VOCAB, seed=3).eval()
    prompt_BT, is_token_BT = rows(LENGTHS, 1)
    length_B = torch.tensor(LENGTHS)
    more_BT, _ = rows([40] * 3, 2)
    cache = Cache(config.num_layers, 3, max(LENGTHS) + 40, torch.device("cpu"))
    check(
        model(prompt_BT, is_token_BT=is_token_BT, cache=cache),
        model(prompt_BT, is_token_BT=is_token_BT),
        length_B - 1,
    )
    for step in range(40):
        logits_B1V = model(
            more_BT[:, step : step + 1], is_token_BT=torch.ones(3, 1, dtype=torch.bool), cache=cache
        )
        if step % 13 == 0 or step == 39:
            whole = [torch.cat([prompt_BT[b, : LENGTHS[b]], more_BT[b, : step + 1]]) for b in range(3)]
            for b, tokens_T in enumerate(whole):
                check(logits_B1V[b : b + 1], model(tokens_T[None]), torch.tensor([len(tokens_T) - 1]))


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
@torch.no_grad()
def test_encoder_decoder_with_cache_matches_full_forward_pass(kind: str) -> None:
    config = T5Config(**T5 | ENCODER_DECODERS[kind])
    model = build_model(config, vocab_size=VOCAB, seed=3).eval()
    source_BS, is_source_BS = rows([30, 7, 1], 1)
    inputs_BT, _ = rows([150] * 3, 2)
    segments_BS, ones_BT = is_source_BS.long(), torch.ones_like(inputs_BT)
    states_BSD = model.encode(source_BS, segments_BS)
    cache = Cache(config.num_decoder_layers, 3, 150, torch.device("cpu"))
    expected_BTV = model(source_BS, inputs_BT, source_segments_BS=segments_BS, segments_BT=ones_BT)
    # Several inputs at once, then one by one, to distances that share the last bucket.
    single = [(step, step + 1) for step in [*range(5, 30), *range(135, 150)]]
    for first, last in sorted([(0, 5), (30, 135), *single]):
        logits_B1V = model.decode(
            inputs_BT[:, first:last], ones_BT[:, first:last], states_BSD, segments_BS, cache=cache
        )
        check(logits_B1V, expected_BTV, torch.full((3,), last - 1))
