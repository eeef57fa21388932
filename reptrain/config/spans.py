"""Lengths under span corruption: whole-number functions of the window's length.

Source: Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text
transformer", 2020, section 3.1.4 and appendix. Halves are rounded to even, as in its published code; that
multiplies in single precision, which at rare ties gives one token more or less.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple


class SpanCounts(NamedTuple):
    """What span corruption makes of one window."""

    noise: int
    """Tokens that are hidden."""
    spans: int
    """Runs of them; as many sentinels are used."""
    inputs: int
    """Tokens for the encoder: what is left, a sentinel for each span, and EOS."""
    targets: int
    """Tokens to predict: a sentinel before each span's tokens, and EOS."""


def span_counts(num_tokens: int, noise_density: float, mean_span_tokens: float) -> SpanCounts:
    """Counts for a window of ``num_tokens`` tokens.

    >>> span_counts(568, 0.15, 3.0)
    SpanCounts(noise=85, spans=28, inputs=512, targets=114)

    Of one token, that token is noise. Spans never touch, so there are at most as many as tokens left.

    Args:
        num_tokens: Raw tokens, at least 1.
        noise_density: Share of them to hide, in (0, 1).
        mean_span_tokens: Mean length of a span, at least 1.
    """
    noise = min(max(round(num_tokens * noise_density), 1), max(num_tokens - 1, 1))
    spans = max(1, min(round(noise / mean_span_tokens), noise, num_tokens - noise))
    return SpanCounts(noise, spans, num_tokens - noise + spans + 1, noise + spans + 1)


def window_filling(input_tokens: int, noise_density: float, mean_span_tokens: float) -> int:
    """The longest window whose inputs fit ``input_tokens``, and those of every shorter window too.

    >>> window_filling(512, 0.15, 3.0)
    568

    Args:
        input_tokens: Tokens that the encoder reads, at least 3.
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
    # As the published code has it: at one half, inputs and targets are to be equally long.
    return tokens - 1 if noise_density == 0.5 and targets > input_tokens else tokens
