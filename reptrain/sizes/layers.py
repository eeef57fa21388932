"""Parameters of a layer, and the matrix elements that a token is multiplied by: the basis of all counts."""

from __future__ import annotations

from typing import NamedTuple

from reptrain.config.model import (
    DecoderConfig,
    ModelConfig,
    MoEConfig,
    StackShape,
    T5Config,
    is_gated,
    norm_vectors,
)
from reptrain.config.vit import VitConfig

CountableConfig = DecoderConfig | T5Config | VitConfig
"""Configurations whose sizes can be counted; a `VitConfig` cannot be trained."""


class LayerCount(NamedTuple):
    """Counts of one or several layers."""

    parameters: int
    """All parameters."""
    idle: int
    """Parameters of the experts that a token is not routed to."""
    products: int
    """Matrix elements that a token of the layer's own sequence is multiplied by."""
    source_products: int = 0
    """Matrix elements that a token of the encoder is multiplied by: keys and values of cross-attention."""
    experts: int = 0
    """Parameters of all experts, idle or not."""

    def plus(self, other: LayerCount) -> LayerCount:
        """The sum of two counts."""
        return LayerCount(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, number: int) -> LayerCount:
        """The counts of ``number`` such layers."""
        return LayerCount(*(number * value for value in self))


class StackCount(NamedTuple):
    """A stack of layers."""

    stored: LayerCount
    """Counts of the stored layers."""
    run: LayerCount
    """Counts of the layers as they run; a shared layer counts each time."""


def stack_counts(config: CountableConfig) -> list[StackCount]:
    """The stacks of a model, one or encoder and decoder, without embeddings and final norms."""
    if isinstance(config, VitConfig):
        config = config.blocks
    if isinstance(config, DecoderConfig):
        return [_stack(config, config.stack, _decoder_rest(config))]
    projection = config.d_model * config.num_heads * config.head_width
    # Position biases are looked up: parameters without products.
    table = config.relative_buckets * config.num_heads if config.relative_bias_per_layer else 0
    encoder = LayerCount(4 * projection + 2 * config.d_model + table, 0, 4 * projection)
    decoder = LayerCount(8 * projection + 3 * config.d_model + table, 0, 6 * projection, 2 * projection)
    return [_stack(config, config.encoder, encoder), _stack(config, config.decoder, decoder)]


def _stack(config: ModelConfig, shape: StackShape, rest: LayerCount) -> StackCount:
    """A stack whose layers consist of ``rest`` and an MLP."""
    dense = rest.plus(_mlp(config, None))
    sparse = rest.plus(_mlp(config, shape.moe))

    def total(num_layers: int, num_sparse: int) -> LayerCount:
        return dense.times(num_layers - num_sparse).plus(sparse.times(num_sparse))

    return StackCount(total(shape.stored, shape.stored_sparse), total(shape.num_layers, shape.num_sparse))


def _mlp(config: ModelConfig, sparse: MoEConfig | None) -> LayerCount:
    matrices, width = 3 if is_gated(config.mlp) else 2, config.d_model
    if sparse is None:
        products = matrices * width * config.d_ff
        has_bias = not isinstance(config, T5Config) and config.has_mlp_bias
        biases = (matrices - 1) * config.d_ff + width if has_bias else 0
        return LayerCount(products + biases, 0, products)
    expert = matrices * width * (sparse.d_ff or config.d_ff)
    parameters = sparse.num_experts * (expert + width) + matrices * width * sparse.shared_d_ff
    idle = (sparse.num_experts - sparse.top_k) * expert
    return LayerCount(parameters, idle, parameters - idle, experts=sparse.num_experts * expert)


def _decoder_rest(config: DecoderConfig) -> LayerCount:
    """Counts of attention and norms of a decoder layer."""
    width, heads, kv_heads = config.d_model, config.num_heads, config.kv_heads
    products = 2 * width * config.head_width * (heads + kv_heads)
    biases = {"none": 0, "qkv": config.head_width * (heads + 2 * kv_heads)}
    biases["all"] = biases["qkv"] + width
    num_norms = 1 if config.parallel_block else 2
    # Two vectors, and a projection of the distances, not of the tokens: parameters without products.
    distances = (width + 2) * config.head_width * heads if config.positions == "relative" else 0
    parameters = products + biases[config.attention_biases] + num_norms * norm_parameters(config) + distances
    return LayerCount(parameters, 0, products)


def norm_parameters(config: DecoderConfig) -> int:
    """Parameters of one norm."""
    return config.d_model * norm_vectors(config.norm, has_bias=config.bias)
