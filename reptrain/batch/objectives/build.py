"""Build an objective from its configuration, with the ids that it takes from the tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reptrain.batch.objectives.augmented_causal import AugmentedCausal
from reptrain.batch.objectives.causal import Causal
from reptrain.batch.objectives.denoising import Denoising
from reptrain.batch.objectives.example import Objective
from reptrain.batch.objectives.fill_in_the_middle import FillInTheMiddle, MiddleIds
from reptrain.batch.objectives.masked_diffusion import MaskedDiffusion
from reptrain.batch.objectives.prefix_lm import PrefixLM
from reptrain.batch.objectives.span_corruption import SpanCorruption
from reptrain.batch.objectives.ul2 import UL2
from reptrain.config.objectives import (
    AugmentedCausalConfig,
    CausalConfig,
    DenoisingConfig,
    FillInTheMiddleConfig,
    MaskedDiffusionConfig,
    PrefixLMConfig,
    SpanCorruptionConfig,
    UL2Config,
)
from reptrain.config.schema import RunConfig
from reptrain.errors import ConfigError
from reptrain.text import Tokenizer


@dataclass(frozen=True)
class _Setup:
    """The parts of a run that builders of objectives use."""

    tokenizer: Tokenizer
    window_tokens: int
    in_one_row: bool
    document_mask: bool
    noise_seed: int

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def start_id(self) -> int:
        """Pad, as in T5; EOS if the tokenizer was trained without pad."""
        return self.tokenizer.pad_id if self.tokenizer.pad_id >= 0 else self.tokenizer.eos_id

    @property
    def document_eos_id(self) -> int | None:
        return self.tokenizer.eos_id if self.document_mask else None


def build_objective(config: RunConfig, tokenizer: Tokenizer, *, noise_seed: int) -> Objective:
    """The objective of a run for one set of windows.

    Args:
        config: The run.
        tokenizer: Source of the special ids.
        noise_seed: Seed of the noise: the run's, or for a set that is scored one of the store's.

    Raises:
        ConfigError: If the tokenizer has too few sentinels.
    """
    setup = _Setup(
        tokenizer,
        config.window_tokens,
        in_one_row=config.model.family == "decoder",
        document_mask=config.data.document_mask,
        noise_seed=noise_seed,
    )
    return _BUILDERS[type(config.objective)](config.objective, setup)


def _causal(config: CausalConfig, setup: _Setup) -> Objective:
    return Causal(setup.start_id, setup.document_eos_id)


def _augmented_causal(config: AugmentedCausalConfig, setup: _Setup) -> Objective:
    views = config.num_views
    ids, _ = _reserve(setup.tokenizer, views - 1, "augmented_causal", f"{views - 1} more start tokens")
    return AugmentedCausal(
        config, (setup.start_id, *ids), noise_seed=setup.noise_seed, frozen=config.has_frozen_noise
    )


def _prefix_lm(config: PrefixLMConfig, setup: _Setup) -> Objective:
    return PrefixLM(
        config,
        setup.start_id,
        setup.window_tokens,
        in_one_row=setup.in_one_row,
        noise_seed=setup.noise_seed,
        frozen=config.has_frozen_noise,
        document_eos_id=setup.document_eos_id,
    )


def _span_corruption(config: SpanCorruptionConfig, setup: _Setup) -> Objective:
    _require_sentinels(
        config.spans(setup.window_tokens).spans,
        setup.tokenizer.num_sentinels,
        setting="objective.mean_span_tokens",
        got=f"{config.mean_span_tokens}",
        window_tokens=setup.window_tokens,
    )
    return SpanCorruption(
        noise_density=config.noise_density,
        mean_span_tokens=config.mean_span_tokens,
        sentinel_ids=setup.tokenizer.sentinel_ids,
        eos_id=setup.eos_id,
        start_id=setup.start_id,
        window_tokens=setup.window_tokens,
        noise_seed=setup.noise_seed,
        frozen=config.has_frozen_noise,
        document_eos_id=setup.document_eos_id,
        in_one_row=setup.in_one_row,
    )


def _denoising(config: DenoisingConfig, setup: _Setup) -> Objective:
    (mask_id,), _ = _reserve(setup.tokenizer, 1, "denoising", "a mask id")
    return Denoising(
        noise_density=config.noise_density,
        mean_span_tokens=config.mean_span_tokens,
        mask_id=mask_id,
        eos_id=setup.eos_id,
        start_id=setup.start_id,
        window_tokens=setup.window_tokens,
        noise_seed=setup.noise_seed,
        frozen=config.has_frozen_noise,
        document_eos_id=setup.document_eos_id,
        in_one_row=setup.in_one_row,
    )


def _ul2(config: UL2Config, setup: _Setup) -> Objective:
    mode_ids, sentinel_ids = _reserve(setup.tokenizer, 3, "ul2", "a token for each of its three modes")
    for place, denoiser in enumerate(config.denoisers):
        mean, density = denoiser.mean_span_tokens, denoiser.noise_density
        _require_sentinels(
            denoiser.spans(setup.window_tokens).spans,
            len(sentinel_ids),
            setting=f"objective.denoisers[{place}]",
            got=f"mode {denoiser.mode}, mean_span_tokens {mean}, noise_density {density}",
            window_tokens=setup.window_tokens,
            beside=" besides the mode tokens",
        )
    return UL2(
        config,
        sentinel_ids,
        (mode_ids[0], mode_ids[1], mode_ids[2]),
        setup.eos_id,
        setup.start_id,
        setup.window_tokens,
        noise_seed=setup.noise_seed,
        frozen=config.has_frozen_noise,
        in_one_row=setup.in_one_row,
    )


def _masked_diffusion(config: MaskedDiffusionConfig, setup: _Setup) -> Objective:
    (mask_id,), _ = _reserve(setup.tokenizer, 1, "masked_diffusion", "a mask id")
    return MaskedDiffusion(
        mask_id,
        exact=config.masking == "exact",
        stratified=config.stratified,
        noise_seed=setup.noise_seed,
        frozen=config.has_frozen_noise,
        document_eos_id=setup.document_eos_id,
    )


def _fill_in_the_middle(config: FillInTheMiddleConfig, setup: _Setup) -> Objective:
    ids, _ = _reserve(setup.tokenizer, 3, "fill_in_the_middle", "a sentinel for each of three parts")
    return FillInTheMiddle(
        config,
        MiddleIds(*ids),
        setup.eos_id,
        setup.start_id,
        setup.window_tokens,
        noise_seed=setup.noise_seed,
        frozen=config.has_frozen_noise,
    )


_BUILDERS: dict[type[Any], Callable[[Any, _Setup], Objective]] = {
    CausalConfig: _causal,
    AugmentedCausalConfig: _augmented_causal,
    PrefixLMConfig: _prefix_lm,
    SpanCorruptionConfig: _span_corruption,
    DenoisingConfig: _denoising,
    UL2Config: _ul2,
    MaskedDiffusionConfig: _masked_diffusion,
    FillInTheMiddleConfig: _fill_in_the_middle,
}


def _reserve(
    tokenizer: Tokenizer, number: int, name: str, purpose: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The last sentinels in the order of use, the very last first, and the remaining ones.

    No text encodes to a sentinel, and every tokenizer for span corruption has some, so the embedding needs no
    new rows.
    """
    ids = tokenizer.sentinel_ids
    if len(ids) < number:
        raise ConfigError(
            "objective.name",
            got=f"{name}, which needs {purpose}, and a tokenizer of {len(ids)} sentinels",
            rule=f"needs a tokenizer with at least {number} sentinels",
            remedy="Tokenize with --num-sentinels, or with a tokenizer that has <extra_id_0> onwards.",
        )
    kept = len(ids) - number
    return ids[kept:][::-1], ids[:kept]


def _require_sentinels(
    spans: int, sentinels: int, *, setting: str, got: str, window_tokens: int, beside: str = ""
) -> None:
    if spans > sentinels:
        raise ConfigError(
            setting,
            got=f"{got}, which makes {spans} spans of {window_tokens} tokens",
            rule=f"must make at most {sentinels} spans, one for each sentinel of the tokenizer{beside}",
            remedy="Raise mean_span_tokens, shorten the window, or use a tokenizer with more sentinels.",
        )
