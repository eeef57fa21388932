"""From a configuration to its objective, with the ids that it needs of the tokenizer."""

from __future__ import annotations

from reptrain.batch.objectives.causal import Causal
from reptrain.batch.objectives.denoising import Denoising
from reptrain.batch.objectives.example import Objective
from reptrain.batch.objectives.fill_in_the_middle import FillInTheMiddle, MiddleIds
from reptrain.batch.objectives.masked_diffusion import MaskedDiffusion
from reptrain.batch.objectives.prefix_lm import PrefixLM
from reptrain.batch.objectives.span_corruption import SpanCorruption
from reptrain.batch.objectives.ul2 import UL2
from reptrain.config.objectives import (
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


def build_objective(config: RunConfig, tokenizer: Tokenizer, *, noise_seed: int) -> Objective:
    """The objective of a run for one set of windows.

    Args:
        config: The run.
        tokenizer: Gives the special ids.
        noise_seed: Keys what the objective draws: the run's seed, or one of the set for a set that is scored.

    Raises:
        ConfigError: If the tokenizer has too few sentinels.
    """
    # As in T5 the decoder starts from pad; a tokenizer trained without one has EOS.
    start_id = tokenizer.pad_id if tokenizer.pad_id >= 0 else tokenizer.eos_id
    document_eos_id = tokenizer.eos_id if config.data.document_mask else None
    eos_id, window_tokens, objective = tokenizer.eos_id, config.window_tokens, config.objective
    if isinstance(objective, CausalConfig):
        return Causal(start_id, document_eos_id)
    noise_of = {"noise_seed": noise_seed, "frozen": objective.noise == "frozen"}
    in_one_row = config.model.family == "decoder"
    match objective:
        case PrefixLMConfig():
            return PrefixLM(
                objective,
                start_id,
                window_tokens,
                in_one_row=in_one_row,
                document_eos_id=document_eos_id,
                **noise_of,
            )
        case SpanCorruptionConfig():
            _require_sentinels(
                objective.spans(window_tokens).spans,
                tokenizer.num_sentinels,
                setting="objective.mean_span_tokens",
                got=f"{objective.mean_span_tokens}",
                window_tokens=window_tokens,
            )
            return SpanCorruption(
                noise_density=objective.noise_density,
                mean_span_tokens=objective.mean_span_tokens,
                sentinel_ids=tokenizer.sentinel_ids,
                eos_id=eos_id,
                start_id=start_id,
                window_tokens=window_tokens,
                document_eos_id=document_eos_id,
                in_one_row=in_one_row,
                **noise_of,
            )
        case DenoisingConfig():
            (mask_id,), _ = _reserved(tokenizer, 1, "denoising", "an id for what is masked")
            return Denoising(
                noise_density=objective.noise_density,
                mean_span_tokens=objective.mean_span_tokens,
                mask_id=mask_id,
                eos_id=eos_id,
                start_id=start_id,
                window_tokens=window_tokens,
                document_eos_id=document_eos_id,
                in_one_row=in_one_row,
                **noise_of,
            )
        case UL2Config():
            mode_ids, sentinel_ids = _reserved(tokenizer, 3, "ul2", "a token for each of its three modes")
            for place, denoiser in enumerate(objective.denoisers):
                mean, density = denoiser.mean_span_tokens, denoiser.noise_density
                _require_sentinels(
                    denoiser.spans(window_tokens).spans,
                    len(sentinel_ids),
                    setting=f"objective.denoisers[{place}]",
                    got=f"mode {denoiser.mode}, mean_span_tokens {mean}, noise_density {density}",
                    window_tokens=window_tokens,
                    beside=" beside the mode tokens",
                )
            return UL2(
                objective,
                sentinel_ids,
                (mode_ids[0], mode_ids[1], mode_ids[2]),
                eos_id,
                start_id,
                window_tokens,
                in_one_row=in_one_row,
                **noise_of,
            )
        case MaskedDiffusionConfig():
            (mask_id,), _ = _reserved(tokenizer, 1, "masked_diffusion", "an id for what is masked")
            return MaskedDiffusion(
                mask_id,
                exact=objective.masking == "exact",
                stratified=objective.stratified,
                document_eos_id=document_eos_id,
                **noise_of,
            )
        case FillInTheMiddleConfig():
            ids, _ = _reserved(tokenizer, 3, "fill_in_the_middle", "a sentinel for each of three parts")
            return FillInTheMiddle(objective, MiddleIds(*ids), eos_id, start_id, window_tokens, **noise_of)


def _reserved(
    tokenizer: Tokenizer, number: int, name: str, purpose: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The last sentinels in the order of use, the very last first, and the others.

    No text encodes to a sentinel, and every tokenizer that can be used for span corruption has some: so the
    embedding needs no new rows.
    """
    ids = tokenizer.sentinel_ids
    if len(ids) < number:
        raise ConfigError(
            "objective.name",
            got=f"{name}, which needs {purpose}, and a tokenizer of {len(ids)} sentinels",
            rule=f"must find {number} sentinels to take",
            remedy="Tokenize with --num-sentinels, or with a tokenizer that has <extra_id_0> onwards.",
        )
    return ids[: -number - 1 : -1], ids[:-number]


def _require_sentinels(
    spans: int, sentinels: int, *, setting: str, got: str, window_tokens: int, beside: str = ""
) -> None:
    if spans > sentinels:
        raise ConfigError(
            setting,
            got=f"{got}, which makes {spans} spans of {window_tokens} tokens",
            rule=f"must make at most as many spans as the tokenizer has sentinels{beside}, {sentinels}",
            remedy="Raise mean_span_tokens, shorten the window, or take a tokenizer of more sentinels.",
        )
