"""Means over seeds, and what they leave uncertain."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

# The 0.975 quantile of Student's t for 1 to 30 degrees of freedom.
_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.959964


class Interval(BaseModel):
    """A mean, or a difference of means, with its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    low: float | None
    """None where one value alone leaves its spread unknown."""
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether all of it is on one side of zero."""
        return self.low is not None and self.high is not None and self.low * self.high > 0

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of values, with Student's interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean=mean, low=None, high=None)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return _around(mean, error, len(values) - 1)


def difference_interval(values: Sequence[float], others: Sequence[float]) -> Interval:
    """The mean of values less that of others, with Welch's interval, which lets their spreads differ."""
    difference = statistics.fmean(values) - statistics.fmean(others)
    if min(len(values), len(others)) < 2:
        return Interval(mean=difference, low=None, high=None)
    parts = [(statistics.variance(group) / len(group), len(group) - 1) for group in (values, others)]
    error = sum(part for part, _ in parts)
    if error == 0:
        return Interval(mean=difference, low=difference, high=difference)
    freedom = error**2 / sum(part**2 / degrees for part, degrees in parts)
    return _around(difference, math.sqrt(error), max(1, math.floor(freedom)))


def _around(mean: float, error: float, freedom: int) -> Interval:
    half = _quantile(freedom) * error
    return Interval(mean=mean, low=mean - half, high=mean + half)


def _quantile(freedom: int) -> float:
    """Of whole degrees of freedom; above the table by the first terms of Cornish and Fisher's series."""
    if freedom <= len(_QUANTILES):
        return _QUANTILES[freedom - 1]
    z = _NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
