"""Parameters of a model, counted without building it."""

from __future__ import annotations

from dataclasses import dataclass

from reptrain.config.schema import DecoderConfig, ModelConfig, T5Config
from reptrain.errors import ConfigError


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model; shared ones count once."""

    embedding: int
    """Of the token embedding and, where it is not tied, the output head."""
    non_embedding: int
    """Of all the rest."""

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.non_embedding


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
    tables = 1 if config.tie_embeddings else 2
    return ParameterCount(
        embedding=tables * embedding_rows(config, vocab_size) * config.d_model,
        non_embedding=_of_decoder(config) if isinstance(config, DecoderConfig) else _of_t5(config),
    )


def _of_decoder(config: DecoderConfig) -> int:
    width = config.d_model
    attention = 2 * width * config.head_dim * (config.num_heads + config.kv_heads)
    mlp = 3 * width * config.d_ff
    norms = 2 * width
    return config.num_layers * (attention + mlp + norms) + width


def _of_t5(config: T5Config) -> int:
    width = config.d_model
    attention = 4 * width * config.num_heads * config.head_dim
    mlp = (3 if config.mlp == "geglu" else 2) * width * config.d_ff
    encoder = config.num_encoder_layers * (attention + mlp + 2 * width)
    decoder = config.num_decoder_layers * (2 * attention + mlp + 3 * width)
    last_norms, biases = 2 * width, 2 * config.relative_buckets * config.num_heads
    return encoder + decoder + last_norms + biases
