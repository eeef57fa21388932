"""Steps whose loss or gradient norm is far above its recent history.

A value is a spike where it exceeds the median of the last values by more than a number of robust standard
deviations (1.4826 times the median absolute deviation), and by a least amount, so that a curve without noise
raises no alarm at every wiggle. The gradient norm is judged on a logarithmic scale, on which its noise is
close to symmetric. Only values above the history count: a falling loss is no spike.

Source: Team OLMo, "2 OLMo 2 Furious", 2024, whose spike score counts values many standard
deviations away from a rolling average. Median and median absolute deviation replace both, since spikes do
not move them.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

WINDOW_STEPS = 64
"""Steps of the history."""
LEAST_STEPS = 32
"""Steps before the first judgement."""
_DEVIATIONS = 7.0
# With few values the deviation is known badly: with n of them the limit is _DEVIATIONS (1 + _FEW / n).
_FEW = 16.0
_NORMAL = 1.4826
_LEAST_LOSS_RATIO = 1.05
_LEAST_GRAD_RATIO = 2.0


class _History:
    """Recent values of one quantity.

    Args:
        least: By how much a spike exceeds the median at least.
    """

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._is_above = False

    def add(self, value: float, *, least_above: float) -> tuple[float, float] | None:
        """Judge a value by those before it, and remember it.

        Args:
            value: The new one.
            least_above: By how much a spike exceeds the median at least.

        Returns:
            The median, and by how many deviations the value exceeds it, where a spike begins.
        """
        found = self._judge(value, least_above)
        begins = found is not None and not self._is_above
        self._is_above = found is not None
        self._values.append(value)
        return found if begins else None

    def _judge(self, value: float, least_above: float) -> tuple[float, float] | None:
        count = len(self._values)
        if count < LEAST_STEPS:
            return None
        median = statistics.median(self._values)
        deviation = _NORMAL * statistics.median(abs(other - median) for other in self._values)
        above = value - median
        if above <= max(least_above, _DEVIATIONS * (1 + _FEW / count) * deviation):
            return None
        return median, above / deviation if deviation else math.inf


class SpikeWatch:
    """Watches a run's loss and gradient norm step by step; a spike of several steps is noted once."""

    def __init__(self) -> None:
        self._loss, self._grad = _History(), _History()

    def add(self, *, loss_nats: float, grad_norm: float | None) -> list[str]:
        """Add a step that was applied; returns what is unusual in it, in words.

        Args:
            loss_nats: Loss of the step.
            grad_norm: L2 norm of its gradient before clipping; None where it is not known.
        """
        found = []
        if math.isfinite(loss_nats):
            least = (_LEAST_LOSS_RATIO - 1) * abs(loss_nats)
            spike = self._loss.add(loss_nats, least_above=least)
            if spike is not None:
                found.append(_text("loss", loss_nats, *spike))
        if grad_norm is not None and math.isfinite(grad_norm) and grad_norm > 0:
            spike = self._grad.add(math.log(grad_norm), least_above=math.log(_LEAST_GRAD_RATIO))
            if spike is not None:
                found.append(_text("gradient norm", grad_norm, math.exp(spike[0]), spike[1]))
        return found


def _text(name: str, value: float, median: float, deviations: float) -> str:
    return (
        f"{name} {value:.4g} spikes above its history: median {median:.4g} of the last steps,"
        f" {deviations:.0f} deviations away"
    )
