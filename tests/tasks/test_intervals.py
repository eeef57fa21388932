"""Intervals against scipy.stats, and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from reptrain.tasks.intervals import Interval, difference_interval, mean_interval, paired_interval


def ends(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None and interval.high is not None
    return interval.low, interval.high


@pytest.mark.parametrize("count", [3, 5, 40])
def test_mean_interval_is_students(count: int) -> None:
    values = np.random.default_rng(count).normal(2.0, 3.0, count).tolist()
    found = mean_interval(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert ends(found) == pytest.approx(
        tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95)), rel=1e-9
    )


@pytest.mark.parametrize(("count", "others"), [(3, 3), (3, 5), (5, 4), (12, 3)])
def test_difference_interval_is_welchs_with_real_degrees_of_freedom(count: int, others: int) -> None:
    draw = np.random.default_rng(10 * count + others)
    left, right = draw.normal(5.0, 0.2, count).tolist(), draw.normal(4.0, 2.0, others).tolist()
    found = difference_interval(left, right)
    expected = stats.ttest_ind(left, right, equal_var=False)
    assert ends(found) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9)
    assert found.freedom == pytest.approx(expected.df) and found.freedom % 1
    assert found.excludes_zero == (expected.pvalue < 0.05)


def test_paired_interval_is_that_of_the_differences_by_seed() -> None:
    draw = np.random.default_rng(0)
    base = draw.normal(5.0, 3.0, 5)
    left, right = base + 0.5 + draw.normal(0, 0.1, 5), base
    here = dict(zip(range(5), left.tolist(), strict=True))
    there = dict(zip(reversed(range(5)), right[::-1].tolist(), strict=True))
    found = paired_interval(here, there)
    expected = stats.ttest_rel(left, right).confidence_interval(0.95)
    assert ends(found) == pytest.approx(tuple(expected), rel=1e-9)
    assert found.method == "paired" and found.excludes_zero
    # The seeds differ by more than the treatment does: unpaired, nothing could be said.
    assert not difference_interval(left.tolist(), right.tolist()).excludes_zero


def test_paired_interval_takes_the_shared_seeds_or_all_where_they_are_few() -> None:
    here = {0: 1.0, 1: 2.0, 2: 3.5, 3: 9.0}
    there = {0: 0.5, 1: 1.0, 2: 2.0, 7: 100.0}
    assert paired_interval(here, there).mean == pytest.approx(1.0)
    apart = {10 + seed: value for seed, value in there.items()}
    found = paired_interval(here, apart)
    assert found == difference_interval([*here.values()], [*apart.values()])
    assert found.method == "welch"


@pytest.mark.parametrize(
    ("values", "reason"),
    [([7.0], "1 seed"), ([7.0, 8.0], "2 seeds"), ([0.0] * 5, "no spread"), ([1.0, 2.0, math.nan], "finite")],
)
def test_intervals_are_not_judged_where_no_spread_can_be_estimated(values: list[float], reason: str) -> None:
    alike = dict(enumerate(values))
    for found in (
        mean_interval(values),
        difference_interval(values, values),
        paired_interval(alike, dict.fromkeys(alike, 0.0)),
    ):
        assert (found.low, found.high, found.excludes_zero) == (None, None, None)
        assert "not judged" in str(found) and reason in str(found)


def test_difference_interval_takes_one_group_without_spread() -> None:
    left, floor = [8.0, 8.5, 9.1], [0.0, 0.0, 0.0]
    expected = stats.ttest_ind(left, floor, equal_var=False).confidence_interval(0.95)
    assert ends(difference_interval(left, floor)) == pytest.approx(tuple(expected), rel=1e-9)
    assert "no spread" in str(difference_interval([1.0] * 3, floor))


@pytest.mark.parametrize("count", [3, 60])
def test_intervals_hold_the_mean_in_95_of_100(count: int) -> None:
    draws = 2000
    values = np.random.default_rng(count).normal(2.0, 3.0, size=(draws, count))
    inside = 0
    for row in values.tolist():
        low, high = ends(mean_interval(row))
        inside += low <= 2 <= high
    # Four standard errors.
    assert inside / draws == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / draws) ** 0.5)
