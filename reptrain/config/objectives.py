"""The configuration of objectives: their settings, token counts and capabilities.

To add an objective, write its file in batch/objectives/, its class and `Tag` here, and its builder in
batch/objectives/build.py.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Discriminator, Field, Tag

from reptrain.config.base import Frozen
from reptrain.config.quantities import Count
from reptrain.config.spans import SpanCounts, span_counts, window_filling

Family = Literal["decoder", "t5"]
Mode = Literal["R", "S", "X"]
Reading = Literal["causal", "prefix", "inputs", "unordered"]
"""How a model reads a prompt. causal: left to right. prefix: bidirectionally, and continues it. inputs:
bidirectionally, and writes a separate target, as an encoder-decoder does. unordered: masked diffusion."""
MODES: tuple[Mode, ...] = ("R", "S", "X")
"""UL2's modes; their tokens are [NLU], [S2S] and [NLG]."""
MIDDLE_TOKENS = 4
"""Tokens that fill-in-the-middle adds to a window: a sentinel before each part, and EOS."""
_INPUT_TOKENS = 512
_Density = Annotated[float, Field(gt=0, le=0.95)]
_Share = Annotated[float, Field(ge=0, le=1)]


class ExampleShape(NamedTuple):
    """Positions of a full window's example, padding included."""

    input_tokens: int
    """Positions of the encoder; 0 for a decoder-only model."""
    target_tokens: int
    """Positions of the decoder."""


class TokenCounts(NamedTuple):
    """Mean number of tokens in a full window's example, without padding."""

    inputs: Fraction
    """Input tokens that are not predicted."""
    targets: Fraction
    """Predicted tokens."""


class _Objective(Frozen):
    families: ClassVar[tuple[Family, ...]] = ("decoder",)
    """Model families that can be trained on it."""
    supports_document_mask: ClassVar[bool] = True
    """Whether attention can be kept within a document."""
    is_noisy: ClassVar[bool] = False
    """Whether it draws random noise."""

    @property
    def has_frozen_noise(self) -> bool:
        """Whether a window gets the same noise in every epoch."""
        return False

    def with_fresh_noise(self) -> Self:
        """The objective with noise that differs from epoch to epoch."""
        return self

    def for_scoring(self) -> Self:
        """The objective that held-out windows are scored with."""
        return self.with_fresh_noise()

    @property
    def scored_settings(self) -> dict[str, Any]:
        """The settings that define the held-out loss. Losses are comparable if these are equal."""
        return self.model_dump(exclude={"noise", "input_tokens"})

    def reading(self, family: Family) -> Reading:
        """How a model trained on it reads a prompt."""
        return "inputs" if family == "t5" else "causal"

    def for_continuation(self, prompt_tokens: int, continuation_tokens: int) -> Self:
        """The objective under which a window's last tokens are predicted from its first ones.

        Args:
            prompt_tokens: Tokens of the window that are given.
            continuation_tokens: Tokens after them that are predicted.
        """
        return self

    @property
    def default_window_tokens(self) -> int:
        """L if data.window_tokens is null."""
        return 256

    @property
    def max_input_tokens(self) -> int | None:
        """Largest number of encoder inputs that the configuration allows; None: no limit."""
        return None

    def shape(self, window_tokens: int, family: Family) -> ExampleShape:
        """Positions of a full window's example."""
        return ExampleShape(0, window_tokens)

    def counts(self, window_tokens: int) -> TokenCounts:
        """Mean number of tokens in a full window's example."""
        return TokenCounts(Fraction(0), Fraction(window_tokens))


class _Noisy(_Objective):
    is_noisy: ClassVar[bool] = True

    noise: Literal["fresh", "frozen"] = "fresh"
    """fresh: draw new noise in each epoch. frozen: the same noise in every epoch; needs data.cut fixed."""

    @property
    def has_frozen_noise(self) -> bool:
        """Whether a window gets the same noise in every epoch."""
        return self.noise == "frozen"

    def with_fresh_noise(self) -> Self:
        """The objective with noise that differs from epoch to epoch."""
        return self.model_copy(update={"noise": "fresh"})


class CausalConfig(_Objective):
    """Predict every token of the window from the tokens before it."""

    name: Literal["causal"] = "causal"
    """The objective."""


class AugmentedCausalConfig(_Noisy):
    """Causal language modeling in which some windows predict a later token than the next one, or are read
    from right to left (Chen et al. 2026). Held-out windows are scored as under `causal`."""

    # The number of targets of a window would depend on where its documents end.
    supports_document_mask: ClassVar[bool] = False

    name: Literal["augmented_causal"]
    """The objective."""
    max_offset: Annotated[Count, Field(ge=1, le=64)] = 5
    """A window predicts the token at a distance drawn uniformly from 1 (the next) to this."""
    right_to_left: _Share = 0.0
    """Share of the windows that are read from right to left."""

    def for_scoring(self) -> Self:
        """The next token, from left to right."""
        return self.model_copy(update={"max_offset": 1, "right_to_left": 0.0, "noise": "fresh"})

    def for_continuation(self, prompt_tokens: int, continuation_tokens: int) -> Self:
        """The next token, from left to right."""
        return self.for_scoring()

    @property
    def scored_settings(self) -> dict[str, Any]:
        """Those of `causal`: the targets of held-out windows are the same."""
        return CausalConfig().scored_settings

    @property
    def num_views(self) -> int:
        """Number of views of a window, each with its own start token."""
        return self.max_offset * (2 if self.right_to_left else 1)

    def counts(self, window_tokens: int) -> TokenCounts:
        """Mean number of tokens in a full window's example."""
        skipped = Fraction(min(self.max_offset, window_tokens) - 1, 2)
        return TokenCounts(skipped, window_tokens - skipped)


class PrefixLMConfig(_Noisy):
    """Predict the rest of the window from its prefix (Raffel et al. 2020). The prefix is bidirectional in a
    decoder, and the encoder's input in an encoder-decoder."""

    families: ClassVar[tuple[Family, ...]] = ("decoder", "t5")

    name: Literal["prefix_lm"]
    """The objective."""
    prefix_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the window in the prefix; null: uniform from 1 token to all but one."""
    bidirectional: bool = True
    """Whether a decoder's attention is bidirectional within the prefix; false: causal."""

    def reading(self, family: Family) -> Reading:
        """How a model trained on it reads a prompt."""
        return "prefix" if family == "decoder" and self.bidirectional else super().reading(family)

    def for_continuation(self, prompt_tokens: int, continuation_tokens: int) -> Self:
        """The prompt is the prefix."""
        fraction = prompt_tokens / (prompt_tokens + continuation_tokens)
        return self.model_copy(update={"prefix_fraction": fraction})

    def split(self, window_tokens: int) -> int | None:
        """Tokens of the prefix, at least one on each side if there are two; None if it is drawn at random."""
        if window_tokens < 2:
            return 0
        if self.prefix_fraction is None:
            return None
        return min(max(round(self.prefix_fraction * window_tokens), 1), window_tokens - 1)

    def shape(self, window_tokens: int, family: Family) -> ExampleShape:
        """Positions of a full window's example."""
        if family == "decoder":
            return ExampleShape(0, window_tokens)
        split = self.split(window_tokens)
        most = max(window_tokens - 1, 1)
        return (
            ExampleShape(most, most) if split is None else ExampleShape(max(split, 1), window_tokens - split)
        )

    def counts(self, window_tokens: int) -> TokenCounts:
        """Mean number of tokens in a full window's example."""
        split = self.split(window_tokens)
        inputs = Fraction(window_tokens, 2) if split is None else Fraction(split)
        return TokenCounts(inputs, window_tokens - inputs)


class _Denoiser(_Noisy):
    """Writes a target that is separate from its inputs."""

    families: ClassVar[tuple[Family, ...]] = ("decoder", "t5")

    def reading(self, family: Family) -> Reading:
        """How a model trained on it reads a prompt."""
        return "inputs"


class SpanCorruptionConfig(_Denoiser):
    """Replace spans of the window by sentinels, and predict them (Raffel et al. 2020). In a decoder, the
    inputs are a bidirectional prefix of the row, and the spans follow."""

    name: Literal["span_corruption"]
    """The objective."""
    noise_density: _Density = 0.15
    """Share of a window's tokens that is hidden."""
    mean_span_tokens: Annotated[float, Field(ge=1)] = 3.0
    """Mean length of a hidden span."""
    input_tokens: Annotated[Count, Field(ge=3, le=2**20)] | None = None
    """Input tokens, sentinels and EOS included; null: as data.window_tokens gives, or 512 if that is null."""

    @property
    def max_input_tokens(self) -> int | None:
        """Largest number of encoder inputs that the configuration allows; None: no limit."""
        return self.input_tokens

    def for_continuation(self, prompt_tokens: int, continuation_tokens: int) -> Self:
        """One hidden span, at the end."""
        share = continuation_tokens / (prompt_tokens + continuation_tokens)
        changes = {"noise_density": share, "mean_span_tokens": float(continuation_tokens)}
        return self.model_copy(update={**changes, "input_tokens": None})

    @property
    def default_window_tokens(self) -> int:
        """The number of tokens that fills the inputs."""
        return window_filling(self.input_tokens or _INPUT_TOKENS, self.noise_density, self.mean_span_tokens)

    def spans(self, window_tokens: int) -> SpanCounts:
        """Counts of a corrupted window."""
        return span_counts(window_tokens, self.noise_density, self.mean_span_tokens)

    def shape(self, window_tokens: int, family: Family) -> ExampleShape:
        """Positions of a full window's example."""
        spans = self.spans(window_tokens)
        return _placed(spans.inputs, spans.targets, family)

    def counts(self, window_tokens: int) -> TokenCounts:
        """Tokens of a full window's example."""
        spans = self.spans(window_tokens)
        return TokenCounts(Fraction(spans.inputs), Fraction(spans.targets))


class DenoisingConfig(_Denoiser):
    """Mask spans of the window, and predict the whole window (Raffel et al. 2020, section 3.3.1). In a
    decoder, the masked window is a bidirectional prefix of the row."""

    name: Literal["denoising"]
    """The objective."""
    noise_density: _Density = 0.15
    """Share of a window's tokens that is masked."""
    mean_span_tokens: Annotated[float, Field(ge=1)] = 3.0
    """Mean length of a masked span."""

    def for_continuation(self, prompt_tokens: int, continuation_tokens: int) -> Self:
        """One masked span, at the end."""
        share = continuation_tokens / (prompt_tokens + continuation_tokens)
        changes = {"noise_density": share, "mean_span_tokens": float(continuation_tokens)}
        return self.model_copy(update=changes)

    @property
    def default_window_tokens(self) -> int:
        """The number of tokens that fills the inputs, with EOS."""
        return _INPUT_TOKENS - 1

    def shape(self, window_tokens: int, family: Family) -> ExampleShape:
        """Positions of a full window's example."""
        return _placed(window_tokens + 1, window_tokens + 1, family)

    def counts(self, window_tokens: int) -> TokenCounts:
        """Tokens of a full window's example."""
        return TokenCounts(Fraction(window_tokens + 1), Fraction(window_tokens + 1))


class DenoiserConfig(Frozen):
    """One of UL2's ways to corrupt a window."""

    mode: Mode
    """Mode token before the inputs: R regular, S sequential, X extreme."""
    noise_density: _Density
    """Share of a window's tokens that is hidden."""
    mean_span_tokens: Annotated[float, Field(ge=1)] | None = None
    """Mean length of a hidden span; null: one span at the end of the window."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Relative frequency."""

    def spans(self, window_tokens: int) -> SpanCounts:
        """Counts of a corrupted window, without the mode token."""
        return span_counts(window_tokens, self.noise_density, self.mean_span_tokens or math.inf)


_SEVEN = tuple(
    DenoiserConfig(mode=mode, noise_density=density, mean_span_tokens=mean)
    for mode, mean, density in (
        *(("R", 3.0, 0.15), ("R", 8.0, 0.15), ("S", None, 0.25)),
        *(("X", 3.0, 0.5), ("X", 8.0, 0.5), ("X", 64.0, 0.15), ("X", 64.0, 0.5)),
    )
)


class UL2Config(_Denoiser):
    """Span corruption by one of several denoisers, drawn per window; a mode token before the inputs names its
    mode (Tay et al. 2022). A decoder reads the inputs as in span corruption."""

    # The mode token belongs to no document.
    supports_document_mask: ClassVar[bool] = False

    name: Literal["ul2"]
    """The objective."""
    denoisers: Annotated[tuple[DenoiserConfig, ...], Field(min_length=1)] = _SEVEN
    """The denoisers. Default: the paper's seven, two R, one S and four X, with equal weights."""

    def for_continuation(self, prompt_tokens: int, continuation_tokens: int) -> Self:
        """The continuation is hidden in mode S."""
        share = continuation_tokens / (prompt_tokens + continuation_tokens)
        ending = DenoiserConfig.model_construct(
            mode="S", noise_density=share, mean_span_tokens=None, weight=1.0
        )
        return self.model_copy(update={"denoisers": (ending,)})

    @property
    def default_window_tokens(self) -> int:
        """512."""
        return _INPUT_TOKENS

    def shape(self, window_tokens: int, family: Family) -> ExampleShape:
        """Positions of a full window's example: the largest denoiser's; the others are padded to it."""
        spans = [denoiser.spans(window_tokens) for denoiser in self.denoisers]
        return _placed(
            max(counts.inputs for counts in spans) + 1, max(counts.targets for counts in spans), family
        )

    def counts(self, window_tokens: int) -> TokenCounts:
        """Mean number of tokens in a full window's example."""
        inputs = targets = total = Fraction(0)
        for denoiser in self.denoisers:
            spans, weight = denoiser.spans(window_tokens), Fraction(denoiser.weight)
            inputs += weight * (spans.inputs + 1)
            targets += weight * spans.targets
            total += weight
        return TokenCounts(inputs / total, targets / total)


class MaskedDiffusionConfig(_Noisy):
    """Mask a share t of the window's tokens, t uniform from 0 to 1, and predict them from all other tokens,
    with bidirectional attention (Sahoo et al. 2024; Nie et al. 2025). Nats times 1/t bound the window's."""

    name: Literal["masked_diffusion"]
    """The objective."""
    masking: Literal["exact", "independent"] = "exact"
    """exact: mask a number of tokens, uniform from 1 to all, and t is its share; independent: mask each token
    with probability t. Both losses have the same mean; the variance of exact is finite."""
    stratified: bool = False
    """Spread a window's shares t evenly over its epochs, instead of drawing each independently."""

    def reading(self, family: Family) -> Reading:
        """How a model trained on it reads a prompt."""
        return "unordered"

    def counts(self, window_tokens: int) -> TokenCounts:
        """Mean number of tokens in a full window's example."""
        more = 1 if self.masking == "exact" else 0
        targets = Fraction(window_tokens + more, 2)
        return TokenCounts(window_tokens - targets, targets)


class FillInTheMiddleConfig(_Noisy):
    """Split some windows into three parts, and move the middle to the end, with a sentinel before each part
    (Bavarian et al. 2022). Every token is predicted from the tokens before it."""

    # Reordering would mix the parts of several documents.
    supports_document_mask: ClassVar[bool] = False

    name: Literal["fill_in_the_middle"]
    """The objective."""
    rate: _Share = 0.5
    """Share of the windows that are split."""
    spm_fraction: _Share = 0.5
    """Share of them in the order suffix, prefix, middle; the others are prefix, suffix, middle."""

    def for_continuation(self, prompt_tokens: int, continuation_tokens: int) -> Self:
        """No window is split."""
        return self.model_copy(update={"rate": 0.0})

    def shape(self, window_tokens: int, family: Family) -> ExampleShape:
        """Positions of a full window's example."""
        return ExampleShape(0, window_tokens + (MIDDLE_TOKENS if self.rate else 0))

    def counts(self, window_tokens: int) -> TokenCounts:
        """Mean number of tokens in a full window's example."""
        return TokenCounts(Fraction(0), window_tokens + MIDDLE_TOKENS * Fraction(self.rate))


def _placed(inputs: int, targets: int, family: Family) -> ExampleShape:
    """In a decoder, one row holds inputs and targets."""
    return ExampleShape(inputs, targets) if family == "t5" else ExampleShape(0, inputs + targets)


def _objective_name(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "causal" if name is None else str(name)


ObjectiveConfig = Annotated[
    Annotated[CausalConfig, Tag("causal")]
    | Annotated[AugmentedCausalConfig, Tag("augmented_causal")]
    | Annotated[PrefixLMConfig, Tag("prefix_lm")]
    | Annotated[SpanCorruptionConfig, Tag("span_corruption")]
    | Annotated[DenoisingConfig, Tag("denoising")]
    | Annotated[UL2Config, Tag("ul2")]
    | Annotated[MaskedDiffusionConfig, Tag("masked_diffusion")]
    | Annotated[FillInTheMiddleConfig, Tag("fill_in_the_middle")],
    Discriminator(_objective_name),
]
"""The training objective."""
