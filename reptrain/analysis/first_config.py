"""A first configuration for a store and a budget, each setting with its source."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from reptrain.analysis.advise import Advice
from reptrain.analysis.hints import Hint, first_decay, first_dropout
from reptrain.config import RunConfig
from reptrain.config.load import dump_yaml, set_dotted, validate
from reptrain.config.model import DecoderConfig
from reptrain.errors import AnalysisError
from reptrain.sizes import count_parameters

_HEAD_DIMS = (64, 32, 16)
_WIDTHS_PER_LAYER = (48, 96)
_MIN_WINDOWS = 64
_WINDOWS = (64, 1024)
_MIN_STEPS = 500
_MOST_EMBEDDINGS = 0.5
_HIGHEST_RATE = 3e-3
_RATE_FITTED = (1e17, 2e19)


class StoreFacts(NamedTuple):
    """What the advice needs to know of a store."""

    path: str
    unique_tokens: int
    """Tokens of its training split."""
    vocab_size: int


class FirstSetting(NamedTuple):
    """One setting of the first configuration."""

    key: str
    value: Any
    source: str


class FirstConfig(NamedTuple):
    """The settings, the number of parameters of the model, and what the settings do not say."""

    settings: list[FirstSetting]
    parameters: int
    hints: list[Hint]

    def data(self) -> dict[str, Any]:
        """The settings and hints as JSON values."""
        return {
            "settings": [setting._asdict() for setting in self.settings],
            "parameters": self.parameters,
            "hints": [hint.model_dump() for hint in self.hints],
        }

    def text(self) -> str:
        """The settings as lines of text."""
        width = max(len(setting.key) for setting in self.settings)
        lines = [f"  {one.key:<{width}}  {one.value}  [{one.source}]" for one in self.settings]
        lines += [f"  {hint.topic}: {hint.advice}  [{hint.source}]" for hint in self.hints]
        return "\n".join(["first configuration:", *lines])

    def yaml(self) -> str:
        """The configuration of `reptrain train`, with the sources as comments."""
        comments = [f"# {setting.key}: {setting.source}" for setting in self.settings]
        return "\n".join(["# Written by reptrain advise.", *comments, dump_yaml(self._nested())])

    def check(self) -> None:
        """Validate the settings.

        Raises:
            ConfigError: If they are no configuration of a run.
        """
        validate(RunConfig, self._nested())

    def _nested(self) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for setting in self.settings:
            set_dotted(data, setting.key, setting.value)
        return data


def first_config(advice: Advice, store: StoreFacts) -> FirstConfig:
    """The first configuration for a store and an advice.

    Args:
        advice: Advice for the store's unique tokens.
        store: The store.

    Raises:
        AnalysisError: If the store is too small for a window, or the advised run is shorter than a window or
            too long to count.
    """
    shape = closest_shape(advice.parameters, store.vocab_size)
    window = _window(store)
    _check_tokens(advice.tokens, window)
    batch, rate, rate_source = _batch_and_rate(advice, window)
    # The law's number of epochs is at least 1.
    whole = advice.tokens >= store.unique_tokens
    budget: str | int = f"{advice.epochs:.4g}epochs" if whole else round(advice.tokens)
    law = f"the law {advice.basis.law}: {'your' if advice.basis.from_runs else 'public'} runs"
    beyond = [f"{name} x{factor:.3g}" for name, factor in advice.extrapolation.items() if factor > 1]
    law += f", extrapolated by {', '.join(beyond)}" if beyond else ""
    hints = {hint.topic: hint for hint in advice.hints}
    width = "head_dim 64, 32 or 16 in a narrow model; d_ff 8/3 d_model (Touvron et al., 2023)"
    found = count_parameters(DecoderConfig(**shape), store.vocab_size).total
    close = f"the shape closest to {advice.parameters:.3g} parameters ({law}); it has {found:,}"
    settings = [
        FirstSetting("data.store", store.path, f"{store.unique_tokens:,} training tokens"),
        FirstSetting("data.window_tokens", window, f"our rule: at least {_MIN_WINDOWS} windows an epoch"),
        *(
            FirstSetting(f"model.{key}", value, close if key == "d_model" else width)
            for key, value in shape.items()
        ),
        FirstSetting("model.dropout.residual", first_dropout(advice.epochs), _said(hints["dropout"])),
        FirstSetting("train.total_tokens", budget, law),
        FirstSetting("train.batch_windows", batch, rate_source),
        FirstSetting("optimizer.lr", rate, rate_source),
        FirstSetting("optimizer.weight_decay", first_decay(advice.epochs), _said(hints["weight decay"])),
        FirstSetting(
            "schedule.name", "cosine", "Loshchilov & Hutter, 2017; decay to a tenth, as in Chinchilla"
        ),
    ]
    config = FirstConfig(settings, found, [_vocabulary(shape, store, found)])
    config.check()
    return config


def _said(hint: Hint) -> str:
    return f"{hint.advice}; {hint.source}"


def closest_shape(parameters: float, vocab_size: int) -> dict[str, Any]:
    """The shape of a decoder whose total number of parameters is closest to a target.

    >>> shape = closest_shape(125e6, 32_000)
    >>> shape["d_model"], shape["num_layers"]
    (896, 10)

    Args:
        parameters: Target.
        vocab_size: Rows of the embedding, which small models tie to the head.

    Returns:
        Settings of the model.

    Source:
        48 to 96 units of width per layer: Kaplan et al., "Scaling laws for neural language models", 2020,
        section 3.1 (the loss depends weakly on the shape).
    """
    best: tuple[float, dict[str, Any]] | None = None
    for width in (*range(32, 128, 16), *range(128, 512, 32), *range(512, 2048, 64), *range(2048, 16385, 256)):
        head = next(size for size in _HEAD_DIMS if width % size == 0 and (width >= 4 * size or size <= 32))
        low, high = (max(2, round(width / ratio)) for ratio in reversed(_WIDTHS_PER_LAYER))
        for layers in range(low, high + 1):
            shape = {
                "d_model": width,
                "num_layers": layers,
                "num_heads": width // head,
                "d_ff": 32 * round(8 * width / 3 / 32),
                "tie_embeddings": parameters < 1e9,
            }
            total = count_parameters(DecoderConfig(**shape), vocab_size).total
            error = abs(math.log(total / parameters))
            if best is None or error < best[0]:
                best = error, shape
    assert best is not None
    return best[1]


def _vocabulary(shape: dict[str, Any], store: StoreFacts, parameters: int) -> Hint:
    tables = 1 if shape["tie_embeddings"] else 2
    share = tables * store.vocab_size * shape["d_model"] / parameters
    advice = f"{store.vocab_size:,} ids, those of the store; {share:.0%} of the parameters are embeddings"
    if share > _MOST_EMBEDDINGS:
        advice += "; tokenize with a smaller --vocab-size"
    source = "Tao et al., 2024, arXiv 2407.13623: small models want small vocabularies; our limit: a half"
    return Hint(topic="vocabulary", advice=advice, source=source)


def _window(store: StoreFacts) -> int:
    """The largest power of two with enough windows in an epoch."""
    most = store.unique_tokens // _MIN_WINDOWS
    if most < _WINDOWS[0]:
        raise AnalysisError(
            f"store {store.path}",
            got=f"{store.unique_tokens:,} training tokens",
            rule=f"must have at least {_WINDOWS[0] * _MIN_WINDOWS:,} for advice",
            remedy="Add text.",
        )
    return int(min(_WINDOWS[1], 2 ** int(math.log2(most))))


def _check_tokens(tokens: float, window: int) -> None:
    if not window <= tokens < 2**62:
        raise AnalysisError(
            "the advised run",
            got=f"{tokens:.3g} tokens",
            rule=f"must have at least one window of {window} tokens, and fewer than 2**62 tokens",
            remedy="Give another budget of FLOPs, or leave out the tokens to hold fixed.",
        )


def published_batch_and_rate(compute_flops: float) -> tuple[float, float]:
    """Tokens of a step and peak learning rate.

    >>> tokens, rate = published_batch_and_rate(1e19)
    >>> round(tokens), round(rate, 5)
    (478942, 0.00131)

    Args:
        compute_flops: Training FLOPs. The publication leaves out those of the embedding and the head.

    Source:
        DeepSeek-AI, "DeepSeek LLM: Scaling open-source language models with longtermism", 2024, arXiv
        2401.02954, equation 1, fitted from 1e17 to 2e19 FLOPs.
    """
    return 0.2920 * compute_flops**0.3271, 0.3118 * compute_flops**-0.1250


def _batch_and_rate(advice: Advice, window: int) -> tuple[int, float, str]:
    """Windows of a step, peak learning rate, and their source."""
    compute = advice.compute_flops
    tokens, rate = published_batch_and_rate(compute)
    most = advice.tokens / _MIN_STEPS
    rate = min(_HIGHEST_RATE, rate)
    batch = max(1, round(min(tokens, most) / window))
    low, high = _RATE_FITTED
    within = "within" if low <= compute <= high else "outside"
    source = (
        f"DeepSeek LLM, arXiv 2401.02954, equation 1, {within} its range of compute; our limits: at least"
        f" {_MIN_STEPS} steps, rate at most {_HIGHEST_RATE:g}"
    )
    return batch, float(f"{rate:.2g}"), source
