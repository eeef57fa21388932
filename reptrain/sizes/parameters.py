"""Parameters of a model, counted without building it."""

from __future__ import annotations

from dataclasses import dataclass

from reptrain.config.schema import DecoderConfig
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


def embedding_rows(config: DecoderConfig, vocab_size: int) -> int:
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


def count_parameters(config: DecoderConfig, vocab_size: int) -> ParameterCount:
    """Parameters of the model that `reptrain.model.build_model` makes.

    Args:
        config: The model.
        vocab_size: Ids of the tokenizer.

    Raises:
        ConfigError: If the configured embedding is smaller than the vocabulary.
    """
    width, head_width = config.d_model, config.head_dim
    tables = 1 if config.tie_embeddings else 2
    attention = 2 * width * head_width * (config.num_heads + config.kv_heads)
    mlp = 3 * width * config.d_ff
    norms = 2 * width
    return ParameterCount(
        embedding=tables * embedding_rows(config, vocab_size) * width,
        non_embedding=config.num_layers * (attention + mlp + norms) + width,
    )
