"""FLOPs: the utilization that the published figures give."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reptrain.config.model import DecoderConfig, MoEConfig, T5Config
from reptrain.config.objectives import ExampleShape
from reptrain.model import build_model
from reptrain.sizes import forward_flops, peak_flops, train_flops_per_window

# Layers of each stack, width, heads, hidden units; FLOPs of a sequence and share of the attention scores.
T5_11 = {
    "base": (12, 768, 12, 2048, 4.259e11, 0.087),
    "large": (24, 1024, 16, 2816, 1.468e12, 0.067),
    "xl": (24, 2048, 32, 5120, 5.346e12, 0.037),
}


def per_token(config: DecoderConfig, vocab_size: int, window_tokens: int) -> float:
    return train_flops_per_window(config, vocab_size, ExampleShape(0, window_tokens)) / window_tokens


def test_train_flops_per_window_gives_the_utilization_of_llama_65b() -> None:
    config = DecoderConfig(num_layers=80, d_model=8192, num_heads=64, d_ff=22016)
    peak = peak_flops("NVIDIA A100-SXM4-80GB", "bf16")
    assert peak is not None
    # Touvron et al. 2023, section 2.4: 380 tokens/s on each A100, windows of 2,048.
    utilization = 380 * per_token(config, 32_000, 2048) / peak
    assert utilization == pytest.approx(0.497, abs=5e-4)


def test_train_flops_per_window_of_a_decoder_is_six_per_parameter_and_the_square_of_the_window() -> None:
    config = DecoderConfig(d_model=64, num_layers=3, num_heads=4, num_kv_heads=2, d_ff=100)
    short, long = (per_token(config, 500, window) for window in (100, 300))
    assert long - short == 12 * 3 * 4 * 16 * 200
    assert short - 12 * 3 * 4 * 16 * 100 == 6 * (2 * 500 * 64 + 3 * (3 * 64 * 64 + 3 * 64 * 100 + 128) + 64)


@pytest.mark.parametrize("name", T5_11)
def test_train_flops_per_window_of_t5_weighs_its_stacks_by_their_lengths(name: str) -> None:
    layers, width, heads, hidden, flops, share = T5_11[name]
    config = T5Config(
        family="t5",
        d_model=width,
        num_heads=heads,
        d_ff=hidden,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
    )
    of_window = train_flops_per_window(config, 32_128, ExampleShape(512, 114))
    assert of_window == pytest.approx(flops, rel=2e-4)
    # Scores and their use of the values: two products of a head's width for each pair of positions.
    pairs = layers * (512 * 512 + 114 * 114 + 114 * 512)
    assert 3 * 4 * heads * 64 * pairs / of_window == pytest.approx(share, abs=5e-4)


T5_SHAPE = {"family": "t5", "num_encoder_layers": 2, "num_decoder_layers": 4, "d_model": 64, "d_ff": 96}
MOE = {"num_experts": 4, "top_k": 2, "every": 2, "shared_d_ff": 48, "backend": "loop"}
GPT = {"mlp": "gelu", "norm": "layernorm", "bias": True, "positions": "learned", "max_positions": 64}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 2},
    "gpt": GPT | {"tie_embeddings": True},
    "head width and biases": {"head_dim": 24, "attention_bias": "all", "mlp_bias": True},
    "sliding window": {"sliding_window": 5, "attention_bias": "qkv"},
    "sparse decoder": {"moe": MOE},
    "switch decoder": {"moe": MOE | {"top_k": 1, "every": 1, "d_ff": 40, "shared_d_ff": 0}},
    "shared decoder": {"num_stored_layers": 2},
    "shared sparse decoder": {"num_stored_layers": 2, "moe": MOE},
    "t5 1.0": T5_SHAPE | {"mlp": "relu", "tie_embeddings": True},
    "t5 1.1": T5_SHAPE,
    "t5 with biases by layer": T5_SHAPE | {"relative_bias_per_layer": True, "mlp": "swiglu"},
    "sparse t5": T5_SHAPE | {"moe": MOE},
    "shared t5": T5_SHAPE | {"num_stored_encoder_layers": 1, "num_stored_decoder_layers": 2},
    "shared sparse t5": T5_SHAPE | {"moe": MOE, "num_stored_decoder_layers": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_forward_flops_equal_those_that_torch_counts(kind: str) -> None:
    shape = ExampleShape(40 if "t5" in kind else 0, 13)
    config = (T5Config if "t5" in kind else DecoderConfig).model_validate(KINDS[kind])
    model = build_model(config, vocab_size=100, seed=0)
    source, inputs = torch.ones(1, 40, dtype=torch.long), torch.ones(1, 13, dtype=torch.long)
    given = {"tokens_BT": inputs}
    if "t5" in kind:
        given = {"source_BS": source, "inputs_BT": inputs}
        given |= {"source_segments_BS": source, "segments_BT": inputs}
    # The counter knows matrix products, not every fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model(**given)
    forward = forward_flops(config, 100, shape)
    assert forward.total == pytest.approx(counted.get_total_flops(), rel=0.02)
    if "t5" in kind:
        assert train_flops_per_window(config, 100, shape) == 3 * forward.total


def test_forward_flops_count_visible_pairs_by_half_and_the_encoder_whole() -> None:
    decoder = forward_flops(DecoderConfig(num_layers=3), 100, ExampleShape(0, 200))
    assert decoder.causal_scores / decoder.scores == pytest.approx(201 / 400)
    windowed = DecoderConfig(num_layers=3, sliding_window=30)
    seen = sum(min(position + 1, 30) for position in range(200))
    causal = forward_flops(windowed, 100, ExampleShape(0, 200))
    assert causal.causal_scores * 200 * 200 == causal.scores * seen
    assert causal.scores == decoder.scores
    t5 = forward_flops(T5Config.model_validate(T5_SHAPE), 100, ExampleShape(40, 13))
    assert t5.scores - t5.causal_scores == 4 * 6 * 64 * 4 * (13 * 13 - 13 * 14 // 2)


def test_train_flops_per_window_follow_active_parameters_and_repeated_layers() -> None:
    plain = DecoderConfig(num_layers=4)
    flops = train_flops_per_window(plain, 500, ExampleShape(0, 64))
    shared = DecoderConfig(num_layers=4, num_stored_layers=1)
    assert train_flops_per_window(shared, 500, ExampleShape(0, 64)) == flops
    moe = MoEConfig(num_experts=8, top_k=2)
    sparse = DecoderConfig(num_layers=4, moe=moe)
    # Another MLP's three matrices and a router in each layer.
    more = 6 * 64 * 4 * (3 * 128 * 384 + 8 * 128)
    assert train_flops_per_window(sparse, 500, ExampleShape(0, 64)) - flops == more


@pytest.mark.parametrize(
    ("device", "precision", "tflops"),
    [
        ("NVIDIA A100-PCIE-40GB", "bf16", 312.0),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H100 NVL", "tf32", 417.5),
        ("NVIDIA H200", "fp16", 989.4),
        ("Tesla V100-SXM2-16GB", "fp16", 125.0),
    ],
)
def test_peak_flops_knows_the_data_sheets(device: str, precision: str, tflops: float) -> None:
    assert peak_flops(device, precision) == tflops * 1e12  # type: ignore[arg-type]


def test_peak_flops_claims_nothing_it_does_not_know() -> None:
    assert peak_flops("cpu", "fp32") is None
    assert peak_flops("Tesla V100-SXM2-16GB", "bf16") is None


def test_sizes_import_no_torch() -> None:
    code = "import sys, reptrain.sizes; assert 'torch' not in sys.modules and 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
