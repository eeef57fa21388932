"""The configuration of an objective: what is predicted from what, and how many tokens that makes."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag

from reptrain.config.base import Frozen
from reptrain.config.quantities import Count
from reptrain.config.spans import SpanCounts, span_counts, window_filling

Family = Literal["decoder", "t5"]
Mode = Literal["R", "S", "X"]
MODES: tuple[Mode, ...] = ("R", "S", "X")
"""UL2's modes; their tokens are [NLU], [S2S] and [NLG]."""
MIDDLE_TOKENS = 4
"""What fill-in-the-middle adds to a window: a sentinel before each part, and EOS."""
_INPUT_TOKENS = 512
_Density = Annotated[float, Field(gt=0, le=0.95)]
_Share = Annotated[float, Field(ge=0, le=1)]


class ExampleShape(NamedTuple):
    """Positions of a full window's example, padding too."""

    input_tokens: int
    """Of the encoder; 0 for a decoder alone."""
    target_tokens: int
    """Of the decoder."""


class TokenCounts(NamedTuple):
    """Tokens of a full window's example on average, without padding."""

    inputs: Fraction
    """Read and not predicted: the encoder's, or what a decoder reads without being asked for it."""
    targets: Fraction
    """Predicted."""


class _Objective(Frozen):
    families: ClassVar[tuple[Family, ...]] = ("decoder",)
    knows_documents: ClassVar[bool] = True
    """Whether attention can be kept within a document."""

    @property
    def default_window_tokens(self) -> int:
        """L where data.window_tokens is null."""
        return 256

    def shape(self, window_tokens: int, family: Family) -> ExampleShape:
        """Positions of a full window's example."""
        return ExampleShape(0, window_tokens)

    def counts(self, window_tokens: int) -> TokenCounts:
        """Tokens of a full window's example on average."""
        return TokenCounts(Fraction(0), Fraction(window_tokens))


class _Noisy(_Objective):
    noise: Literal["fresh", "frozen"] = "fresh"
    """What is drawn at random is drawn anew in each epoch, or is the same in all, which needs a fixed cut."""


class CausalConfig(_Objective):
    """Every token of the window from the tokens before it."""

    name: Literal["causal"] = "causal"
    """The objective."""


class PrefixLMConfig(_Noisy):
    """The rest of the window from its beginning (Raffel et al. 2020). A decoder's positions within the
    beginning read all of it; an encoder-decoder reads it with its encoder."""

    families: ClassVar[tuple[Family, ...]] = ("decoder", "t5")

    name: Literal["prefix_lm"]
    """The objective."""
    prefix_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the window that is the beginning; null: from 1 token to all but one, all alike likely."""
    bidirectional: bool = True
    """Whether a decoder's positions within the beginning read all of it, or, as in causal, what is before."""

    def split(self, window_tokens: int) -> int | None:
        """Tokens of the beginning, at least one on each side where there are two; None where it is drawn."""
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
        """Tokens of a full window's example on average."""
        split = self.split(window_tokens)
        inputs = Fraction(window_tokens, 2) if split is None else Fraction(split)
        return TokenCounts(inputs, window_tokens - inputs)


class SpanCorruptionConfig(_Noisy):
    """Hide spans of the window behind sentinels, and predict them (Raffel et al. 2020). A decoder reads the
    window with its sentinels, bidirectionally, in the same row before the spans."""

    families: ClassVar[tuple[Family, ...]] = ("decoder", "t5")

    name: Literal["span_corruption"]
    """The objective."""
    noise_density: _Density = 0.15
    """Share of a window's tokens that is hidden."""
    mean_span_tokens: Annotated[float, Field(ge=1)] = 3.0
    """Mean length of a hidden span."""
    input_tokens: Annotated[Count, Field(ge=3, le=2**20)] | None = None
    """Tokens of the window with its sentinels; null: what data.window_tokens gives, or 512 where that is
    null too."""

    @property
    def default_window_tokens(self) -> int:
        """As many as fill the inputs."""
        return window_filling(self.input_tokens or _INPUT_TOKENS, self.noise_density, self.mean_span_tokens)

    def spans(self, window_tokens: int) -> SpanCounts:
        """What becomes of a window."""
        return span_counts(window_tokens, self.noise_density, self.mean_span_tokens)

    def shape(self, window_tokens: int, family: Family) -> ExampleShape:
        """Positions of a full window's example."""
        spans = self.spans(window_tokens)
        return _placed(spans.inputs, spans.targets, family)

    def counts(self, window_tokens: int) -> TokenCounts:
        """Tokens of a full window's example."""
        spans = self.spans(window_tokens)
        return TokenCounts(Fraction(spans.inputs), Fraction(spans.targets))


class DenoisingConfig(_Noisy):
    """Mask tokens of the window, and predict the whole window, masked and not (Raffel et al. 2020, section
    3.3.1). A decoder reads the masked window, bidirectionally, in the same row before it."""

    families: ClassVar[tuple[Family, ...]] = ("decoder", "t5")

    name: Literal["denoising"]
    """The objective."""
    noise_density: _Density = 0.15
    """Share of a window's tokens that is masked."""
    mean_span_tokens: Annotated[float, Field(ge=1)] = 3.0
    """Mean length of a run of masked tokens."""

    @property
    def default_window_tokens(self) -> int:
        """As many as fill the inputs, with EOS."""
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
    """R regular, S sequential, X extreme: which mode token stands before the inputs."""
    noise_density: _Density
    """Share of a window's tokens that is hidden."""
    mean_span_tokens: Annotated[float, Field(ge=1)] | None = None
    """Mean length of a hidden span; null: one span, the window's end."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often it is drawn, relative to the others."""

    def spans(self, window_tokens: int) -> SpanCounts:
        """What becomes of a window, without the mode token."""
        return span_counts(window_tokens, self.noise_density, self.mean_span_tokens or math.inf)


_SEVEN = tuple(
    DenoiserConfig(mode=mode, noise_density=density, mean_span_tokens=mean)
    for mode, mean, density in (
        *(("R", 3.0, 0.15), ("R", 8.0, 0.15), ("S", None, 0.25)),
        *(("X", 3.0, 0.5), ("X", 8.0, 0.5), ("X", 64.0, 0.15), ("X", 64.0, 0.5)),
    )
)


class UL2Config(_Noisy):
    """Span corruption in one of several ways, drawn for each window, with the way's mode told by the first
    token of the inputs (Tay et al. 2022). A decoder reads the inputs as in span corruption."""

    families: ClassVar[tuple[Family, ...]] = ("decoder", "t5")
    # The mode token stands in no document.
    knows_documents: ClassVar[bool] = False

    name: Literal["ul2"]
    """The objective."""
    denoisers: Annotated[tuple[DenoiserConfig, ...], Field(min_length=1)] = _SEVEN
    """The ways to corrupt a window. Those of the paper: two R, one S, four X, all alike likely."""

    @property
    def default_window_tokens(self) -> int:
        """512."""
        return _INPUT_TOKENS

    def shape(self, window_tokens: int, family: Family) -> ExampleShape:
        """Positions of a full window's example: those of the largest, which pads the others."""
        spans = [denoiser.spans(window_tokens) for denoiser in self.denoisers]
        return _placed(
            max(counts.inputs for counts in spans) + 1, max(counts.targets for counts in spans), family
        )

    def counts(self, window_tokens: int) -> TokenCounts:
        """Tokens of a full window's example on average."""
        inputs = targets = total = Fraction(0)
        for denoiser in self.denoisers:
            spans, weight = denoiser.spans(window_tokens), Fraction(denoiser.weight)
            inputs += weight * (spans.inputs + 1)
            targets += weight * spans.targets
            total += weight
        return TokenCounts(inputs / total, targets / total)


class MaskedDiffusionConfig(_Noisy):
    """Mask a share t of the window's tokens, t uniform from 0 to 1, and predict them from all the others, in
    full attention (Sahoo et al. 2024; Nie et al. 2025). Their nats times 1/t are a bound of the window's."""

    name: Literal["masked_diffusion"]
    """The objective."""
    masking: Literal["exact", "independent"] = "exact"
    """exact: a number of tokens, from 1 to all alike likely, and t is its share; independent: each token with
    probability t. Both have the same mean; the variance of exact is finite."""
    stratified: bool = False
    """Spread the shares of a window evenly over its epochs, instead of drawing each by itself."""

    def counts(self, window_tokens: int) -> TokenCounts:
        """Tokens of a full window's example on average."""
        more = 1 if self.masking == "exact" else 0
        targets = Fraction(window_tokens + more, 2)
        return TokenCounts(window_tokens - targets, targets)


class FillInTheMiddleConfig(_Noisy):
    """Some windows are cut into three parts, and the middle one is put last, each behind a sentinel (Bavarian
    et al. 2022); every token from those before it."""

    # Parts of several documents would be exchanged.
    knows_documents: ClassVar[bool] = False

    name: Literal["fill_in_the_middle"]
    """The objective."""
    rate: _Share = 0.5
    """Share of the windows that are cut."""
    spm_fraction: _Share = 0.5
    """Share of these in the order suffix, prefix, middle; the others are prefix, suffix, middle."""

    def shape(self, window_tokens: int, family: Family) -> ExampleShape:
        """Positions of a full window's example."""
        return ExampleShape(0, window_tokens + (MIDDLE_TOKENS if self.rate else 0))

    def counts(self, window_tokens: int) -> TokenCounts:
        """Tokens of a full window's example on average."""
        return TokenCounts(Fraction(0), window_tokens + MIDDLE_TOKENS * Fraction(self.rate))


def _placed(inputs: int, targets: int, family: Family) -> ExampleShape:
    """A decoder reads the inputs in the row of the targets."""
    return ExampleShape(inputs, targets) if family == "t5" else ExampleShape(0, inputs + targets)


def _objective_name(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "causal" if name is None else str(name)


ObjectiveConfig = Annotated[
    Annotated[CausalConfig, Tag("causal")]
    | Annotated[PrefixLMConfig, Tag("prefix_lm")]
    | Annotated[SpanCorruptionConfig, Tag("span_corruption")]
    | Annotated[DenoisingConfig, Tag("denoising")]
    | Annotated[UL2Config, Tag("ul2")]
    | Annotated[MaskedDiffusionConfig, Tag("masked_diffusion")]
    | Annotated[FillInTheMiddleConfig, Tag("fill_in_the_middle")],
    Discriminator(_objective_name),
]
"""What is predicted from what."""
