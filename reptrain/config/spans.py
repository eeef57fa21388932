"""Number of noise tokens, spans, inputs and targets in span corruption, from the length of the window.

Source: Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text
transformer", 2020, section 3.1.4 and appendix. Halves are rounded to even, as in the published code, which
computes in single precision: at a few lengths its result differs by one token.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple


class SpanCounts(NamedTuple):
    """Counts of one window."""

    noise: int
    """Noise tokens."""
    spans: int
    """Spans of noise tokens, each replaced by one sentinel."""
    inputs: int
    """Encoder inputs: the other tokens, one sentinel for each span, and EOS."""
    targets: int
    """Targets: for each span a sentinel and the span's tokens, and EOS."""


def span_counts(num_tokens: int, noise_density: float, mean_span_tokens: float) -> SpanCounts:
    """Compute the counts of a window.

    >>> span_counts(568, 0.15, 3.0)
    SpanCounts(noise=85, spans=28, inputs=512, targets=114)

    A window of one token is all noise. Spans are never adjacent, so there are at most as many spans as other
    tokens.

    Args:
        num_tokens: Raw tokens, at least 1.
        noise_density: Share of noise tokens, in (0, 1).
        mean_span_tokens: Mean length of a span, at least 1.
    """
    noise = min(max(round(num_tokens * noise_density), 1), max(num_tokens - 1, 1))
    spans = max(1, min(round(noise / mean_span_tokens), noise, num_tokens - noise))
    return SpanCounts(noise, spans, num_tokens - noise + spans + 1, noise + spans + 1)


def window_filling(input_tokens: int, noise_density: float, mean_span_tokens: float) -> int:
    """The longest window for which it and every shorter window have at most ``input_tokens`` inputs.

    >>> window_filling(512, 0.15, 3.0)
    568

    Args:
        input_tokens: Maximum number of encoder inputs, at least 3.
        noise_density: As in `span_counts`.
        mean_span_tokens: As in `span_counts`.
    """

    def inputs(tokens: int) -> int:
        return span_counts(tokens, noise_density, mean_span_tokens).inputs

    above = 2
    while inputs(above) <= input_tokens:
        above *= 2
    tokens = bisect_right(range(above), input_tokens, lo=1, key=inputs) - 1
    targets = span_counts(tokens, noise_density, mean_span_tokens).targets
    # As in the published code: at a density of one half, the targets must not be longer than the inputs.
    return tokens - 1 if noise_density == 0.5 and targets > input_tokens else tokens
