"""Objectives: what is predicted from what, one file each."""

from __future__ import annotations

from reptrain.batch.objectives.causal import Causal
from reptrain.batch.objectives.example import IGNORE, Example, Objective
from reptrain.batch.objectives.span_corruption import SpanCorruption
from reptrain.config.schema import CausalConfig, RunConfig
from reptrain.config.spans import span_counts
from reptrain.errors import ConfigError
from reptrain.text import Tokenizer

__all__ = ["IGNORE", "Causal", "Example", "Objective", "SpanCorruption", "build_objective"]


def build_objective(config: RunConfig, tokenizer: Tokenizer, *, noise_seed: int) -> Objective:
    """The objective of a run for one set of windows.

    Args:
        config: The run.
        tokenizer: Gives the special ids.
        noise_seed: Keys what the objective draws: the run's seed, or one of the set for a set that is scored.

    Raises:
        ConfigError: If the tokenizer has fewer sentinels than a full window has spans.
    """
    # As in T5 the decoder starts from pad; a tokenizer trained without one has EOS.
    start_id = tokenizer.pad_id if tokenizer.pad_id >= 0 else tokenizer.eos_id
    document_eos_id = tokenizer.eos_id if config.data.document_mask else None
    objective = config.objective
    if isinstance(objective, CausalConfig):
        return Causal(start_id, document_eos_id)
    spans = span_counts(config.window_tokens, objective.noise_density, objective.mean_span_tokens).spans
    if spans > tokenizer.num_sentinels:
        raise ConfigError(
            "objective.mean_span_tokens",
            got=f"{objective.mean_span_tokens}, which makes {spans} spans of {config.window_tokens} tokens",
            rule=f"must make at most as many spans as the tokenizer has sentinels, {tokenizer.num_sentinels}",
            remedy="Raise it, shorten the window, or tokenize with a tokenizer of more sentinels.",
        )
    return SpanCorruption(
        noise_density=objective.noise_density,
        mean_span_tokens=objective.mean_span_tokens,
        sentinel_ids=tokenizer.sentinel_ids,
        eos_id=tokenizer.eos_id,
        start_id=start_id,
        window_tokens=config.window_tokens,
        noise_seed=noise_seed,
        frozen=objective.noise == "frozen",
        document_eos_id=document_eos_id,
    )
