"""The steps at which a run evaluates or saves."""

from __future__ import annotations

import pytest

from reptrain.config.sections import EvaluateConfig
from reptrain.plan.marks import evaluation_steps, marks


@pytest.mark.parametrize(
    ("num_steps", "fraction", "expected"),
    [
        (10, 1.0, {10}),
        (10, 0.5, {5, 10}),
        (10, 0.3, {3, 6, 9, 10}),
        (12, 0.25, {3, 6, 9, 12}),
        # At most once a step.
        (4, 0.01, {1, 2, 3, 4}),
        (3, 0.1, {1, 2, 3}),
        (1, 0.5, {1}),
        # The product is below 10 by rounding.
        (1000, 0.1, {100, 200, 300, 400, 500, 600, 700, 800, 900, 1000}),
    ],
)
def test_marks_are_at_every_fraction_and_at_the_end(
    num_steps: int, fraction: float, expected: set[int]
) -> None:
    assert marks(num_steps, fraction) == expected


def test_evaluation_steps_are_marks_and_the_steps_named() -> None:
    evaluate = EvaluateConfig(every_fraction=0.5, at_steps=[3, 5])
    assert evaluation_steps(evaluate, 10) == {3, 5, 10}
