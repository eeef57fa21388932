"""Training speed: the one definition of tokens/s.

    tokens/s = tokens of the applied steps / seconds of these steps, over all devices

Tokens are those that the run consumes: raw tokens of the windows, as in the ledger; in fine-tuning, the
tokens of inputs and targets. Padding does not count. The time of a step runs from the request for its batch
to the updated weights, so it includes waiting for data, but not evaluation and checkpoints. tokens/s per
device is this value divided by the number of devices.

`metrics.jsonl` (`tokens_per_s`, `tokens_per_s_per_device`) and TensorBoard have it for each step, the console
for the last steps, the end of a run for all its steps, and a study's report has the median of the steps.
Loss, FLOPs and MFU refer to the same tokens and times.
"""

from __future__ import annotations

from collections import deque

_RECENT_STEPS = 50


def tokens_per_s(tokens: float, seconds: float) -> float:
    """Tokens per second over all devices.

    Args:
        tokens: Tokens of some steps.
        seconds: Time of these steps.
    """
    return tokens / seconds


def pace_text(rate: float, devices: int) -> str:
    """The speed as text.

    Args:
        rate: Tokens/s over all devices.
        devices: Number of devices.
    """
    each = f" ({rate / devices:,.0f} per device)" if devices > 1 else ""
    return f"{rate:,.0f} tokens/s{each}"


class Pace:
    """Speed over the last steps.

    Args:
        steps: Number of steps to average over.
    """

    def __init__(self, steps: int = _RECENT_STEPS) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=steps)

    def add(self, tokens: int, seconds: float) -> float:
        """Add a step. Returns the tokens/s of the last steps, including this one.

        Args:
            tokens: Tokens of the step.
            seconds: Time of the step.
        """
        self._recent.append((tokens, seconds))
        return tokens_per_s(*map(sum, zip(*self._recent, strict=True)))
