"""Parameters of a model, counted without building it."""

from __future__ import annotations

from dataclasses import dataclass

from reptrain.config.model import ModelConfig, T5Config
from reptrain.config.vit import VitConfig
from reptrain.errors import ConfigError
from reptrain.sizes.layers import CountableConfig, norm_parameters, stack_counts


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model; shared ones count once."""

    embedding: int
    """Parameters of the token embedding and, if it is not tied, the output head."""
    non_embedding: int
    """All other parameters, learned positions included."""
    idle: int = 0
    """Non-embedding parameters of experts that a token does not use."""
    repeated: int = 0
    """Additional active parameters if shared layers count each time they run."""
    experts: int = 0
    """Non-embedding parameters of all experts."""

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.non_embedding

    @property
    def active(self) -> int:
        """Parameters used per token."""
        return self.total - self.idle

    @property
    def run(self) -> int:
        """Parameters used per token, counted each time they run; FLOPs are proportional to them."""
        return self.active + self.repeated


def embedding_rows(config: ModelConfig, vocab_size: int) -> int:
    """Rows of the embedding: the configured number, or the tokenizer's vocabulary size.

    Args:
        config: The model.
        vocab_size: Vocabulary size of the tokenizer.

    Raises:
        ConfigError: If the configured number is smaller than the vocabulary.
    """
    rows = config.vocab_size or vocab_size
    if rows < vocab_size:
        raise ConfigError(
            "model.vocab_size",
            got=rows,
            rule=f"must hold the tokenizer's {vocab_size} ids",
            remedy=f"Set it to {vocab_size} or more, or remove it.",
        )
    return rows


def count_parameters(config: CountableConfig, vocab_size: int) -> ParameterCount:
    """Parameters of the model that `reptrain.model.build_model` builds.

    Args:
        config: The model.
        vocab_size: Vocabulary size of the tokenizer.

    Raises:
        ConfigError: If the configured embedding is smaller than the vocabulary.
    """
    stacks = stack_counts(config)
    active, run = (
        sum(count.parameters - count.idle for count in counts)
        for counts in ([stack.stored for stack in stacks], [stack.run for stack in stacks])
    )
    idle = sum(stack.stored.idle for stack in stacks)
    return ParameterCount(
        embedding=_embedding(config, vocab_size),
        non_embedding=active + idle + _around_the_layers(config),
        idle=idle,
        repeated=run - active,
        experts=sum(stack.stored.experts for stack in stacks),
    )


def _embedding(config: CountableConfig, vocab_size: int) -> int:
    """Embedding and head, or patch projection and classifier with images."""
    width = config.d_model
    if isinstance(config, VitConfig):
        image = config.image
        patch = image.patch_pixels**2 * image.num_channels
        # Patches are projected with a bias; the class token is added.
        return (patch + 2) * width + (width + 1) * image.num_classes
    table = embedding_rows(config, vocab_size) * width
    return table if config.tie_embeddings else 2 * table


def _around_the_layers(config: CountableConfig) -> int:
    """Final norms and positions."""
    if isinstance(config, VitConfig):
        config = config.blocks
    if isinstance(config, T5Config):
        tables = 0 if config.relative_bias_per_layer else 2 * config.relative_buckets * config.num_heads
        return 2 * config.d_model + tables
    return norm_parameters(config) + (config.max_positions or 0) * config.d_model
