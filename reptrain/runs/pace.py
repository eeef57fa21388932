"""Training speed: the one definition of tokens/s.

    tokens/s = tokens of the steps that were applied / seconds of these steps, all devices together

Tokens are those that the run consumes: raw tokens of the windows, as the ledger counts them; in a
fine-tuning the tokens of inputs and targets. Padding does not count. The seconds of a step run from the
request for its batch to the updated weights, so that slow data shows; evaluation and checkpoints are outside.
tokens/s per device is the same over the number of devices.

It stands in `metrics.jsonl` (`tokens_per_s`, `tokens_per_s_per_device`) and TensorBoard for each step, on the
console over the last steps, at the end of a run over all of its steps, and in a study's report as the median
of the steps. Loss, FLOPs and MFU refer to the same tokens and seconds.
"""

from __future__ import annotations

from collections import deque

_RECENT_STEPS = 50


def tokens_per_s(tokens: float, seconds: float) -> float:
    """Tokens of some steps over their seconds, all devices together.

    Args:
        tokens: Of the steps.
        seconds: Of the steps.
    """
    return tokens / seconds


def pace_text(rate: float, devices: int) -> str:
    """The speed in words.

    Args:
        rate: Tokens/s of all devices together.
        devices: How many.
    """
    each = f" ({rate / devices:,.0f} per device)" if devices > 1 else ""
    return f"{rate:,.0f} tokens/s{each}"


class Pace:
    """Speed over the last steps.

    Args:
        steps: How many of them count.
    """

    def __init__(self, steps: int = _RECENT_STEPS) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=steps)

    def add(self, tokens: int, seconds: float) -> float:
        """Count a step; returns the tokens/s of the last ones, this one among them.

        Args:
            tokens: Of the step.
            seconds: Of the step.
        """
        self._recent.append((tokens, seconds))
        return tokens_per_s(*map(sum, zip(*self._recent, strict=True)))
