"""Floating-point operations: what a model needs, and what a device can give."""

from __future__ import annotations

from typing import Literal

from reptrain.config.model import DecoderConfig, ModelConfig, T5Config
from reptrain.config.schema import ExampleShape
from reptrain.sizes.parameters import count_parameters, embedding_rows

Precision = Literal["fp32", "tf32", "bf16", "fp16"]


def train_flops_per_window(config: ModelConfig, vocab_size: int, shape: ExampleShape) -> int:
    """FLOPs of the forward and backward pass for one full window, without recomputation.

    A decoder is counted by the published convention, so that utilizations compare; an encoder-decoder by its
    matrix products, since encoder and decoder see different numbers of tokens. Attention counts the full
    square either way.

    Args:
        config: The model.
        vocab_size: Ids of the tokenizer.
        shape: Tokens that encoder and decoder see of the window.

    Raises:
        ConfigError: If the configured embedding is smaller than the vocabulary.
    """
    if isinstance(config, DecoderConfig):
        return shape.target_tokens * _decoder_flops_per_token(config, vocab_size, shape.target_tokens)
    return 3 * _t5_forward_flops(config, vocab_size, shape)


def _decoder_flops_per_token(config: DecoderConfig, vocab_size: int, num_tokens: int) -> int:
    """6 N + 12 L H Q T, where N counts all parameters, the input embedding too.

    Source: Chowdhery et al., "PaLM: Scaling language modeling with pathways", 2022, appendix B.
    """
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * num_tokens
    return 6 * count_parameters(config, vocab_size).total + attention


def _t5_forward_flops(config: T5Config, vocab_size: int, shape: ExampleShape) -> int:
    """Two for each weight and token that meet, and for each product of two positions in the attention.

    Keys and values of the cross-attention are computed once for each token of the encoder.
    """
    width, inner = config.d_model, config.num_heads * config.head_dim
    source, target = shape
    encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
    projection = width * inner
    mlp = (3 if config.mlp == "geglu" else 2) * width * config.d_ff
    weights = source * (encoder * (4 * projection + mlp) + decoder * 2 * projection)
    weights += target * (decoder * (6 * projection + mlp) + embedding_rows(config, vocab_size) * width)
    positions = encoder * source**2 + decoder * (target**2 + target * source)
    return 2 * weights + 4 * inner * positions


# Dense (not sparse) peaks in 1e12 FLOP/s from NVIDIA's data sheets, as (fp32, tf32, bf16, fp16);
# None where the device lacks the format. The first entry whose name stands in the device's name holds.
_PEAK_TFLOPS: tuple[tuple[str, tuple[float, float | None, float | None, float]], ...] = (
    ("B200", (75.0, 1125.0, 2250.0, 2250.0)),
    ("H200 NVL", (60.0, 417.5, 835.5, 835.5)),
    ("H200", (67.0, 494.7, 989.4, 989.4)),
    ("H100 NVL", (60.0, 417.5, 835.5, 835.5)),
    ("H100 PCIe", (51.0, 378.0, 756.0, 756.0)),
    ("H100", (67.0, 494.7, 989.4, 989.4)),
    ("A100", (19.5, 156.0, 312.0, 312.0)),
    ("L40S", (91.6, 183.0, 362.05, 362.05)),
    ("V100-PCIE", (14.0, None, None, 112.0)),
    ("V100", (15.7, None, None, 125.0)),
)


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """Peak of one device, for model FLOPs utilization.

    Args:
        device_name: As the driver tells it, for example "NVIDIA H100 80GB HBM3".
        precision: Of the matrix products.

    Returns:
        FLOP/s of dense matrix products with fp32 accumulation, or None where no data sheet is known here.
    """
    column = ("fp32", "tf32", "bf16", "fp16").index(precision)
    for name, peaks in _PEAK_TFLOPS:
        if name in device_name:
            tflops = peaks[column]
            return None if tflops is None else tflops * 1e12
    return None
