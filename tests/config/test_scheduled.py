"""Numbers that change in the course of a run."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from reptrain.config.scheduled import Coefficient, Moment, Rate, RunPosition, Scheduled

RATE, COEFFICIENT = TypeAdapter(Rate), TypeAdapter(Coefficient)


def progress(step: int, *, steps: int = 10, step_tokens: int = 100, epoch_steps: int = 4) -> RunPosition:
    return RunPosition(step, step * step_tokens, steps * step_tokens, Fraction(step, epoch_steps))


def values(given: Any) -> list[float]:
    scheduled = RATE.validate_python(given)
    return [round(scheduled.at(progress(step)), 6) for step in range(10)]


@pytest.mark.parametrize("start", ["50%", "5steps", "1.25epochs", "500", "500 tokens", "0.5e1 steps"])
def test_a_rate_comes_at_its_moment_and_not_a_step_before(start: str) -> None:
    assert values({"value": 0.1, "start": start}) == [0.0] * 5 + [0.1] * 5


def test_a_number_is_constant() -> None:
    assert values(0.25) == values("0.25") == [0.25] * 10
    scheduled = RATE.validate_python(0.25)
    assert scheduled.is_constant and scheduled.first == scheduled.largest == 0.25


def test_a_ramp_is_linear() -> None:
    expected = [0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert values({"value": 0.1, "before": 0.5, "start": "1steps", "over": "4steps"}) == expected
    assert values({"value": 0.4, "over": "40%"}) == [0.0, 0.1, 0.2, 0.3] + [0.4] * 6


def test_written_yaml_is_read_back() -> None:
    for given in (
        0.1,
        {"value": 0.1, "start": "50%"},
        {"value": 0.1, "over": "2epochs"},
        {"value": 0.2, "before": 0.3, "start": "2**20", "over": "1e3"},
    ):
        scheduled = RATE.validate_python(given)
        assert RATE.validate_python(RATE.dump_python(scheduled, mode="json")) == scheduled
    assert RATE.dump_python(RATE.validate_python(0.1)) == 0.1
    for text in ("50%", "12.5%", "3epochs", "100steps", "1048576tokens"):
        assert str(Moment.parse(text)) == text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (1.0, "at least 0 and less than 1"),
        (-0.1, "at least 0"),
        ({"value": 0.1, "before": 2}, "less than 1"),
        ({"value": 0.1, "start": "150%"}, "at most 100%"),
        ({"value": 0.1, "start": "later"}, "a point in the run"),
        ({"value": 0.1, "start": "x%"}, "a point in the run"),
        ({"value": 0.1, "start": "1.5steps"}, "whole number"),
        ({"value": 0.1, "start": "50%", "over": "2epochs"}, "over must be in the unit of start 50%"),
        ({"value": 0.1, "over": "0%"}, "more than 0"),
        ({"value": 0.1, "from": "50%"}, "Extra inputs"),
        ("abc", "number"),
        (None, "number"),
    ],
)
def test_bad_schedules_are_refused(given: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RATE.validate_python(given)


def test_a_coefficient_has_no_upper_bound() -> None:
    assert COEFFICIENT.validate_python(3.2) == Scheduled(value=3.2)
    with pytest.raises(ValidationError, match="at least 0"):
        COEFFICIENT.validate_python(-1)
