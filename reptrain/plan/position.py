"""The position of a run at each step."""

from __future__ import annotations

from fractions import Fraction

from reptrain.config.scheduled import RunPosition
from reptrain.plan.mixture import MixturePlan
from reptrain.plan.shard import StepPlan


def position_at(plan: MixturePlan, steps: StepPlan, step: int) -> RunPosition:
    """The position of a run at the start of a step."""
    first, _ = steps.window_range(step)
    return RunPosition(
        step=step,
        tokens=plan.tokens_before(first),
        total_tokens=plan.total_tokens,
        epochs=Fraction(first, plan.windows_per_epoch),
    )
