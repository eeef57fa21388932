"""Intervals against published examples, and against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from reptrain.tasks.intervals import difference_interval, mean_interval


def test_students_interval() -> None:
    # Standard error sqrt(2.5 / 5), 4 degrees of freedom.
    found = mean_interval([1, 2, 3, 4, 5])
    assert found.mean == 3
    assert found.low == pytest.approx(3 - 2.776 * 0.70711, abs=1e-3)
    assert found.high == pytest.approx(3 + 2.776 * 0.70711, abs=1e-3)
    alone = mean_interval([7.0])
    assert alone.mean == 7 and alone.low is None and not alone.excludes_zero


def test_welchs_interval() -> None:
    found = difference_interval([5.0, 6.0, 7.0], [1.0, 2.0, 3.0])
    # Equal variances of 1: error sqrt(2 / 3), 4 degrees of freedom.
    assert found.mean == 4 and found.low == pytest.approx(4 - 2.776 * 0.8165, abs=1e-3)
    assert found.excludes_zero and not difference_interval([1.0, 9.0], [2.0, 3.0]).excludes_zero


@pytest.mark.parametrize("count", [3, 60])
def test_intervals_hold_the_mean_in_95_of_100(count: int) -> None:
    draws = 2000
    values = np.random.default_rng(count).normal(2.0, 3.0, size=(draws, count))
    inside = 0
    for row in values.tolist():
        found = mean_interval(row)
        assert found.low is not None and found.high is not None
        inside += found.low <= 2 <= found.high
    # Four standard errors.
    assert inside / draws == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / draws) ** 0.5)
