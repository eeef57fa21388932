"""Floating-point operations: what a model needs, and what a device can give."""

from __future__ import annotations

from typing import Literal

from reptrain.config.schema import DecoderConfig
from reptrain.sizes.parameters import count_parameters

Precision = Literal["fp32", "tf32", "bf16", "fp16"]


def train_flops_per_token(config: DecoderConfig, vocab_size: int, window_tokens: int) -> int:
    """FLOPs of the forward and backward pass for one token, without recomputation.

    All parameters count, the input embedding too, and attention counts the full square of the
    window: the published convention, so that utilizations compare.

    Args:
        config: The model.
        vocab_size: Ids of the tokenizer.
        window_tokens: T, tokens that attend to each other.

    Returns:
        6 N + 12 L H Q T.

    Source:
        Chowdhery et al., "PaLM: Scaling language modeling with pathways", 2022, appendix B.
    """
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * window_tokens
    return 6 * count_parameters(config, vocab_size).total + attention


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
