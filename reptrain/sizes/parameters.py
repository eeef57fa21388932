"""Parameters of a model, counted without building it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from reptrain.config.model import DecoderConfig, ModelConfig, StackShape, T5Config
from reptrain.errors import ConfigError


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model; shared ones count once."""

    embedding: int
    """Of the token embedding and, where it is not tied, the output head."""
    non_embedding: int
    """Of all the rest."""
    idle: int = 0
    """Of these the experts' that a token is not sent to."""

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.non_embedding

    @property
    def active(self) -> int:
        """Those that a token meets."""
        return self.total - self.idle


def embedding_rows(config: ModelConfig, vocab_size: int) -> int:
    """Rows of the embedding: the configured number, or as many as the tokenizer has ids.

    Args:
        config: The model.
        vocab_size: Ids of the tokenizer.

    Raises:
        ConfigError: If the configured number leaves ids of the tokenizer without a row.
    """
    rows = config.vocab_size or vocab_size
    if rows < vocab_size:
        raise ConfigError(
            "model.vocab_size",
            got=rows,
            rule=f"must hold the tokenizer's {vocab_size} ids",
            remedy=f"Set it to {vocab_size} or more, or leave it out.",
        )
    return rows


def count_parameters(config: ModelConfig, vocab_size: int) -> ParameterCount:
    """Parameters of the model that `reptrain.model.build_model` makes.

    Args:
        config: The model.
        vocab_size: Ids of the tokenizer.

    Raises:
        ConfigError: If the configured embedding is smaller than the vocabulary.
    """
    table = embedding_rows(config, vocab_size) * config.d_model
    rest, idle = _of_decoder(config) if isinstance(config, DecoderConfig) else _of_t5(config)
    return ParameterCount(
        embedding=table if config.tie_embeddings else 2 * table, non_embedding=rest, idle=idle
    )


class _Count(NamedTuple):
    """Parameters, and those of them that a token does not meet."""

    stored: int
    idle: int


def _of_stack(config: ModelConfig, shape: StackShape, rest: int) -> _Count:
    """A stack whose layers have ``rest`` parameters beside the MLP."""
    width = config.d_model
    matrices = 3 if isinstance(config, DecoderConfig) or config.mlp == "geglu" else 2
    dense = matrices * width * config.d_ff
    stored = shape.stored * (rest + dense)
    if shape.moe is None:
        return _Count(stored, 0)
    moe = shape.moe
    expert = matrices * width * (moe.d_ff or config.d_ff)
    shared = matrices * width * moe.shared_d_ff
    sparse = moe.num_experts * (expert + width) + shared
    idle = shape.stored_sparse * (moe.num_experts - moe.top_k) * expert
    return _Count(stored + shape.stored_sparse * (sparse - dense), idle)


def _of_decoder(config: DecoderConfig) -> _Count:
    width = config.d_model
    attention = 2 * width * config.head_dim * (config.num_heads + config.kv_heads)
    stack = _of_stack(config, config.stack, attention + 2 * width)
    return _Count(stack.stored + width, stack.idle)


def _of_t5(config: T5Config) -> _Count:
    width = config.d_model
    attention = 4 * width * config.num_heads * config.head_dim
    encoder = _of_stack(config, config.encoder, attention + 2 * width)
    decoder = _of_stack(config, config.decoder, 2 * attention + 3 * width)
    last_norms, biases = 2 * width, 2 * config.relative_buckets * config.num_heads
    return _Count(encoder.stored + decoder.stored + last_norms + biases, encoder.idle + decoder.idle)
