"""Steps whose loss or gradient norm is far above its recent values.

A value is a spike if it exceeds the median of the last values by more than a number of robust standard
deviations (1.4826 times the median absolute deviation), and by a minimum amount, so that smooth curves do not
raise alarms. The gradient norm is compared on a logarithmic scale, where its noise is nearly symmetric. Only
values above the median count: a drop of the loss is not a spike.

Source: Team OLMo, "2 OLMo 2 Furious", 2024, whose spike score counts values many standard
deviations away from a rolling average. Median and median absolute deviation replace both, since they are
robust to spikes.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

WINDOW_STEPS = 64
"""Steps whose values are kept."""
LEAST_STEPS = 32
"""Steps before the first check."""
_DEVIATIONS = 7.0
# The deviation of few values is uncertain: with n values the limit is _DEVIATIONS (1 + _FEW / n).
_FEW = 16.0
_NORMAL = 1.4826
_LEAST_LOSS_RATIO = 1.05
_LEAST_GRAD_RATIO = 2.0


class _History:
    """Recent values of one quantity."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._is_above = False

    def add(self, value: float, *, least_above: float) -> tuple[float, float] | None:
        """Compare a value with the previous ones, and add it.

        Args:
            value: The new value.
            least_above: Minimum amount by which a spike exceeds the median.

        Returns:
            If a spike begins, the median, and the number of deviations by which the value exceeds it.
        """
        spike = self._compare(value, least_above)
        begins = spike is not None and not self._is_above
        self._is_above = spike is not None
        self._values.append(value)
        return spike if begins else None

    def _compare(self, value: float, least_above: float) -> tuple[float, float] | None:
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
    """Watches a run's loss and gradient norm. A spike of several steps is reported once."""

    def __init__(self) -> None:
        self._loss, self._grad = _History(), _History()

    def add(self, *, loss_nats: float, grad_norm: float | None) -> list[str]:
        """Add an applied step. Returns a message for each spike that begins.

        Args:
            loss_nats: Loss of the step.
            grad_norm: L2 norm of its gradient before clipping; None if unknown.
        """
        messages = []
        if math.isfinite(loss_nats):
            least = (_LEAST_LOSS_RATIO - 1) * abs(loss_nats)
            spike = self._loss.add(loss_nats, least_above=least)
            if spike is not None:
                messages.append(_text("loss", loss_nats, *spike))
        if grad_norm is not None and math.isfinite(grad_norm) and grad_norm > 0:
            spike = self._grad.add(math.log(grad_norm), least_above=math.log(_LEAST_GRAD_RATIO))
            if spike is not None:
                messages.append(_text("gradient norm", grad_norm, math.exp(spike[0]), spike[1]))
        return messages


def _text(name: str, value: float, median: float, deviations: float) -> str:
    return (
        f"{name} {value:.4g} spikes above its history: median {median:.4g} of the last steps,"
        f" {deviations:.0f} deviations away"
    )
