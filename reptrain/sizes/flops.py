"""Floating-point operations of a model, and peak rates of devices."""

from __future__ import annotations

from typing import Literal, NamedTuple

from reptrain.config.model import DecoderConfig, ModelConfig, Recompute, T5Config
from reptrain.config.objectives import ExampleShape
from reptrain.config.vit import VitConfig
from reptrain.sizes.layers import CountableConfig, stack_counts
from reptrain.sizes.parameters import count_parameters, embedding_rows

Precision = Literal["fp32", "tf32", "bf16", "fp16"]


class ForwardFlops(NamedTuple):
    """FLOPs of the forward pass for one full window, counted over its matrix products: two per multiply-add.

    Norms, activations, biases, softmax and embedding lookups are not counted. Keys and values of
    cross-attention count once per token of the encoder, shared layers each time they run, and experts for the
    tokens dispatched to them.
    """

    products: int
    """Products of weights and activations, output head and routers included."""
    scores: int
    """Attention scores and weighted values, over all pairs of positions."""
    causal_scores: int
    """The same over the visible pairs, given the causal mask and model.sliding_window."""
    head: int
    """Products of the output head, which are part of `products`."""

    @property
    def total(self) -> int:
        """With all pairs, as in published figures."""
        return self.products + self.scores

    @property
    def causal(self) -> int:
        """With the visible pairs."""
        return self.products + self.causal_scores


def forward_flops(config: CountableConfig, vocab_size: int, shape: ExampleShape) -> ForwardFlops:
    """FLOPs of the forward pass for one full window. A training step takes three times as many.

    Args:
        config: The model.
        vocab_size: Vocabulary size of the tokenizer.
        shape: Positions of encoder and decoder for a window.

    Raises:
        ConfigError: If the configured embedding is smaller than the vocabulary.
    """
    source, target = shape
    stacks = stack_counts(config)
    last = stacks[-1].run
    products = target * last.products + source * last.source_products
    head = _head_and_patches(config, vocab_size, target)
    products += head
    # The decoder's own square; a window of images has no order.
    full, causal = target**2, target * (target + 1) // 2
    if isinstance(config, VitConfig):
        config, causal = config.blocks, full
    if isinstance(config, T5Config):
        products += source * stacks[0].run.products
        encoder = config.num_encoder_layers * source**2
        cross, decoder = target * source, config.num_decoder_layers
        pairs, visible = encoder + decoder * (full + cross), encoder + decoder * (causal + cross)
    else:
        if isinstance(config, DecoderConfig) and config.sliding_window is not None:
            # The first positions attend to fewer.
            hidden = max(0, target - config.sliding_window)
            causal -= hidden * (hidden + 1) // 2
        pairs, visible = config.num_layers * full, config.num_layers * causal
    # Relative positions have a second product of a query and a vector for each pair.
    is_relative = isinstance(config, DecoderConfig) and config.positions == "relative"
    of_pair = (6 if is_relative else 4) * config.num_heads * config.head_width
    return ForwardFlops(2 * products, of_pair * pairs, of_pair * visible, 2 * head)


def _head_and_patches(config: CountableConfig, vocab_size: int, num_tokens: int) -> int:
    """Products of the head and, with images, of the patch projection; the head reads one token."""
    if isinstance(config, VitConfig):
        image = config.image
        patches = (num_tokens - 1) * image.patch_pixels**2 * image.num_channels
        return (patches + image.num_classes) * config.d_model
    return num_tokens * embedding_rows(config, vocab_size) * config.d_model


def train_flops_per_window(config: ModelConfig, vocab_size: int, shape: ExampleShape) -> int:
    """FLOPs of the forward and backward pass for one full window, without recomputation.

    A decoder is counted by the published convention, for comparable utilization. An encoder-decoder is
    counted by its matrix products, since encoder and decoder have different numbers of positions. Attention
    counts all pairs in both cases.

    Args:
        config: The model.
        vocab_size: Vocabulary size of the tokenizer.
        shape: Positions of encoder and decoder for a window.

    Raises:
        ConfigError: If the configured embedding is smaller than the vocabulary.
    """
    if isinstance(config, DecoderConfig):
        return shape.target_tokens * published_flops_per_token(config, vocab_size, shape.target_tokens)
    return 3 * forward_flops(config, vocab_size, shape).total


def published_flops_per_token(config: DecoderConfig, vocab_size: int, window_tokens: int) -> int:
    """Training FLOPs per token, 6 N + 12 L H Q T.

    N is the number of parameters used per token, the input embedding included, and shared layers each time
    they run.

    Source: Chowdhery et al., "PaLM: Scaling language modeling with pathways", 2022, appendix B.
    """
    attention = 12 * config.num_layers * config.num_heads * config.head_width * window_tokens
    return 6 * count_parameters(config, vocab_size).run + attention


def utilization_flops(
    config: ModelConfig, vocab_size: int, shape: ExampleShape, *, recompute: Recompute
) -> dict[str, int]:
    """Training FLOPs of one window by each convention for utilization, by the name of the utilization.

    - ``MFU, PaLM``: 6 N + 12 L H Q T per token, a decoder only (`published_flops_per_token`).
    - ``MFU, PaLM, visible pairs``: the same with the attention that the mask leaves.
    - ``MFU, products``: matrix products and all pairs of positions, without embeddings that are only looked
      up. nanochat counts like this.
    - ``MFU, products, visible pairs``: the same with the attention that the mask leaves.
    - ``HFU``: the first one with the layers that are computed again in the backward pass.

    Args:
        config: The model.
        vocab_size: Vocabulary size of the tokenizer.
        shape: Positions of encoder and decoder for a window.
        recompute: `train.activation_checkpointing`. Selective recomputation repeats no matrix product.

    Raises:
        ConfigError: If the configured embedding is smaller than the vocabulary.
    """
    forward = forward_flops(config, vocab_size, shape)
    hidden_pairs = 3 * (forward.scores - forward.causal_scores)
    flops: dict[str, int] = {}
    if isinstance(config, DecoderConfig):
        palm = train_flops_per_window(config, vocab_size, shape)
        flops |= {"MFU, PaLM": palm, "MFU, PaLM, visible pairs": palm - hidden_pairs}
    flops |= {"MFU, products": 3 * forward.total, "MFU, products, visible pairs": 3 * forward.causal}
    again = forward.total - forward.head if recompute == "full" else 0
    return flops | {"HFU": next(iter(flops.values())) + again}


# Dense (not sparse) peaks in 1e12 FLOP/s from NVIDIA's data sheets, as (fp32, tf32, bf16, fp16);
# None if the device lacks the format. The first entry whose name is part of the device's name applies.
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
        device_name: Name from the driver, for example "NVIDIA H100 80GB HBM3".
        precision: Precision of the matrix products.

    Returns:
        FLOP/s of dense matrix products with fp32 accumulation, or None for an unknown device.
    """
    column = ("fp32", "tf32", "bf16", "fp16").index(precision)
    for name, peaks in _PEAK_TFLOPS:
        if name in device_name:
            tflops = peaks[column]
            return None if tflops is None else tflops * 1e12
    return None
