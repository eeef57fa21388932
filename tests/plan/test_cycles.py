"""The ends of the cycles of the learning rate, in steps."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest

from reptrain.config.optimizers import AdamWConfig, ScheduleConfig
from reptrain.config.quantities import Budget
from reptrain.config.schedule import step_learning_rate
from reptrain.plan import MixturePlan, StepPlan, plan_epochs
from reptrain.plan.cycles import cycle_ends


@pytest.mark.parametrize("cycles", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.13])
def test_the_rate_rises_after_each_end_and_nowhere_else(cycles: int, warmup: float) -> None:
    # The last window is short, and so is the last batch.
    plan = MixturePlan(
        (
            plan_epochs(
                unique_tokens=1003,
                window_tokens=10,
                budget=Budget(epochs=Fraction(5)),
                order="same",
                cut="fixed",
                seed=0,
            ),
        )
    )
    steps = StepPlan(4, plan.total_windows)
    schedule = ScheduleConfig(name="cyclic", cycles=cycles, warmup_fraction=warmup)
    tokens = [plan.tokens_before(min(4 * step, plan.total_windows)) for step in range(steps.num_steps + 1)]
    rates = [
        step_learning_rate(before, after, plan.total_tokens, AdamWConfig(), schedule)
        for before, after in pairwise(tokens)
    ]
    warm = warmup * plan.total_tokens
    rises = [step for step in range(1, len(rates)) if rates[step] > rates[step - 1] and tokens[step] > warm]
    ends = cycle_ends(schedule, plan, steps)
    assert ends == [*(step for step in rises if tokens[step - 1] > warm), steps.num_steps]
    assert len(ends) == cycles


def test_cycles_shorter_than_a_step_are_left_out() -> None:
    plan = MixturePlan(
        (
            plan_epochs(
                unique_tokens=30, window_tokens=10, budget=Budget(epochs=Fraction(1)), order="same",
                cut="fixed", seed=0,
            ),
        )
    )  # fmt: skip
    schedule = ScheduleConfig(name="cyclic", cycles=50, warmup_fraction=0.0)
    assert cycle_ends(schedule, plan, StepPlan(1, 3)) == [1, 2, 3]
    assert cycle_ends(ScheduleConfig(), plan, StepPlan(1, 3)) == []
