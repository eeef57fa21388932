"""Intervals and tests of a mean over independent seeds. The statistics are those of statsmodels and arch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reptrain.analysis.questions import FEWEST_SEEDS

Floats = NDArray[np.float64]
Method = Literal["paired t", "paired t and bootstrap", "sign test"]

BOOTSTRAP_FROM = 8
"""From this many seeds the bootstrap is used as well, and the wider bound counts."""
DRAWS = 9_999
_BOOTSTRAP_SEED = 0
# Relative differences below this are rounding.
_EQUAL = 1e-12


@dataclass(frozen=True)
class SeedMeans:
    """Means over seeds of one or more independent samples, with the distribution of their errors.

    Attributes:
        values: One value for each seed and sample, shape (seeds, samples).
        draws: Studentized bootstrap errors, shape (draws, samples), or None for the t distribution.
    """

    values: Floats
    draws: Floats | None

    @classmethod
    def of(cls, values: Floats, *, num_draws: int = DRAWS, fewest: int = FEWEST_SEEDS) -> SeedMeans:
        """Choose the method by the number of seeds.

        Args:
            values: float64, shape (seeds, samples) or (seeds,).
            num_draws: Bootstrap draws.
            fewest: Smallest number of seeds to accept.

        Raises:
            ValueError: If there are too few seeds.

        Source: Efron and Tibshirani, An Introduction to the Bootstrap, section 12.5 (bootstrap-t).
        """
        columns = np.asarray(values, np.float64).reshape(len(values), -1)
        if len(columns) < fewest:
            raise ValueError(f"at least {fewest} seeds are needed, but got {len(columns)}")
        return cls(columns, _studentized(columns, num_draws) if len(columns) >= BOOTSTRAP_FROM else None)

    @property
    def mean(self) -> Floats:
        """Mean of each sample, shape (samples,)."""
        return np.asarray(self.values.mean(0))

    @property
    def std(self) -> Floats:
        """Standard deviation over seeds of each sample, shape (samples,)."""
        return np.asarray(self.values.std(0, ddof=1))

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Samples whose seeds all have the same value, shape (samples,)."""
        return np.asarray(np.ptp(self.values, 0) <= _EQUAL * np.abs(self.values).max(0))

    def method(self, sample: int = 0) -> Method:
        """How the interval of a sample is computed."""
        if self.constant[sample]:
            return "sign test"
        return "paired t" if self.draws is None else "paired t and bootstrap"

    def interval(self, alpha: Floats) -> tuple[Floats, Floats]:
        """The two-sided interval with coverage ``1 - alpha``.

        Args:
            alpha: Level of each sample, shape (samples,).

        Returns:
            Lower and upper bounds, shape (samples,). A constant sample has an interval of width zero, or
            without bounds if its seeds are too few for the level.
        """
        low, high = self._interval(alpha)
        enough = 2.0 * 0.5 ** len(self.values) <= alpha
        low[self.constant] = np.where(enough, self.mean, -np.inf)[self.constant]
        high[self.constant] = np.where(enough, self.mean, np.inf)[self.constant]
        return low, high

    def _interval(self, alpha: Floats) -> tuple[Floats, Floats]:
        low, high = map(
            np.array, zip(*(self._t_interval(i, level) for i, level in enumerate(alpha)), strict=True)
        )
        if self.draws is None:
            return low, high
        error = self.std / np.sqrt(len(self.values))
        ordered = np.sort(self.draws, 0)
        # The k-th smallest of B draws is the quantile k / (B + 1), so that the test and the interval agree.
        outside = np.floor(alpha / 2 * (len(ordered) + 1) + _EQUAL).astype(int)
        rank, sample = np.maximum(outside, 1), np.arange(len(alpha))
        low = np.minimum(low, self.mean - error * ordered[len(ordered) - rank, sample])
        high = np.maximum(high, self.mean - error * ordered[rank - 1, sample])
        return np.where(outside < 1, -np.inf, low), np.where(outside < 1, np.inf, high)

    def _t_interval(self, sample: int, alpha: float) -> tuple[float, float]:
        if self.constant[sample]:
            return float(self.mean[sample]), float(self.mean[sample])
        low, high = self._described(sample).tconfint_mean(alpha)
        return float(low), float(high)

    def _described(self, sample: int | None = None) -> Any:
        from statsmodels.stats.weightstats import DescrStatsW

        return DescrStatsW(self.values if sample is None else self.values[:, sample])

    def p_above(self, bound: float) -> Floats:
        """P value of "the mean is at most ``bound``" against "it is greater", shape (samples,)."""
        return self._p_one_sided(bound, sign=1)

    def p_below(self, bound: float) -> Floats:
        """P value of "the mean is at least ``bound``" against "it is smaller", shape (samples,)."""
        return self._p_one_sided(bound, sign=-1)

    def _p_one_sided(self, bound: float, *, sign: int) -> Floats:
        distance = sign * (self.mean - bound)
        # Equal values have no spread. Under the null hypothesis at the median, all are on one side by chance.
        p_constant = np.where(distance > 0, 0.5 ** len(self.values), 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            p = np.atleast_1d(self._described().ttest_mean(bound, "larger" if sign > 0 else "smaller")[1])
            if self.draws is not None:
                statistic = distance / (self.std / np.sqrt(len(self.values)))
                beyond = (sign * self.draws >= statistic).sum(0)
                p = np.maximum(p, (1 + beyond) / (len(self.draws) + 1))
        return np.where(self.constant, p_constant, p)


def _studentized(values: Floats, num_draws: int) -> Floats:
    """``(mean of a resample - mean) / standard error of the resample``, shape (draws, samples)."""
    from arch.bootstrap import IIDBootstrap

    mean, num_seeds = values.mean(0), len(values)

    def statistic(resample: Floats) -> Floats:
        error = resample.std(0, ddof=1) / np.sqrt(num_seeds)
        # A resample of one seed alone has no spread: its error is infinite, or undefined if all seeds agree.
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.nan_to_num((resample.mean(0) - mean) / error, posinf=np.inf, neginf=-np.inf))

    bootstrap = IIDBootstrap(values, seed=_BOOTSTRAP_SEED)
    return np.asarray(bootstrap.apply(statistic, num_draws), np.float64)
