"""Means over seeds and differences of such means, with 95 % intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict
from scipy.special import stdtrit

_LEVEL = 0.95
# With two values the t interval has one degree of freedom, and reaches 12.7 standard errors to each side.
_FEWEST = 3
_NO_SPREAD = "no spread between the seeds"


class Interval(BaseModel):
    """A mean, or a difference of means, with its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    low: float | None
    """Lower end; None where the values do not allow an interval."""
    high: float | None
    """Upper end, likewise."""
    freedom: float | None = None
    """Degrees of freedom of Student's t."""
    method: Literal["student", "welch", "paired"] | None = None
    """How the interval was computed; None where there is none."""
    reason: str | None = None
    """Why there is no interval."""

    @property
    def excludes_zero(self) -> bool | None:
        """Whether the interval lies on one side of zero; None where this is not judged."""
        if self.low is None or self.high is None:
            return None
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f}" + (f" (not judged: {self.reason})" if self.reason else "")
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean with Student's t interval.

    Args:
        values: One value for each seed.

    Returns:
        The mean; without an interval below 3 values or where all are equal.

    Source:
        Student, "The probable error of a mean", 1908.
    """
    mean = statistics.fmean(values)
    if reason := _not_judged(values):
        return Interval(mean=mean, low=None, high=None, reason=reason)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return _around(mean, error, len(values) - 1, "student")


def difference_interval(values: Sequence[float], others: Sequence[float]) -> Interval:
    """The difference of two means with Welch's t interval, which allows unequal variances.

    Args:
        values: One value for each seed.
        others: Values of the other group, of independent seeds.

    Returns:
        mean(values) - mean(others); without an interval where a group has fewer than 3 values, or where
        neither has a spread.

    Source:
        Welch, "The generalization of 'Student's' problem when several different population variances are
        involved", 1947.
    """
    difference = statistics.fmean(values) - statistics.fmean(others)
    reasons = [_not_judged(group) for group in (values, others)]
    if (reasons[0] or reasons[1]) and not (_NO_SPREAD in reasons and None in reasons):
        return Interval(mean=difference, low=None, high=None, reason=reasons[0] or reasons[1])
    parts = [(statistics.variance(group) / len(group), len(group) - 1) for group in (values, others)]
    error = sum(part for part, _ in parts)
    freedom = error**2 / sum(part**2 / degrees for part, degrees in parts)
    return _around(difference, math.sqrt(error), freedom, "welch")


def paired_interval(values: Mapping[int, float], others: Mapping[int, float]) -> Interval:
    """The difference of two means: paired over the seeds that both have, or Welch's where they share few.

    Args:
        values: By seed.
        others: Of the other group, by seed.

    Returns:
        The mean difference over the shared seeds, if these are at least 3; else that of all seeds.
    """
    shared = sorted(values.keys() & others.keys())
    if len(shared) < _FEWEST and values.keys() != others.keys():
        return difference_interval([*values.values()], [*others.values()])
    found = mean_interval([values[seed] - others[seed] for seed in shared])
    return found if found.method is None else found.model_copy(update={"method": "paired"})


def _not_judged(values: Sequence[float]) -> str | None:
    """Why a spread cannot be estimated from these values."""
    if not all(map(math.isfinite, values)):
        return "a value is not finite"
    if len(values) < _FEWEST:
        return f"{len(values)} seed{'s' * (len(values) != 1)}, needs at least {_FEWEST}"
    # Equal to rounding counts as equal: differences of floats seldom agree in the last bit.
    if max(values) - min(values) <= 1e-12 * max(map(abs, values)):
        return _NO_SPREAD
    return None


def _around(mean: float, error: float, freedom: float, method: Literal["student", "welch"]) -> Interval:
    half = float(stdtrit(freedom, (1 + _LEVEL) / 2)) * error
    return Interval(mean=mean, low=mean - half, high=mean + half, freedom=freedom, method=method)
