"""The cycles of a cyclic learning rate, in steps."""

from __future__ import annotations

from bisect import bisect_left

from reptrain.config.optimizers import ScheduleConfig
from reptrain.config.schedule import cycle_at
from reptrain.plan.mixture import MixturePlan
from reptrain.plan.position import position_at
from reptrain.plan.shard import StepPlan


def cycle_ends(schedule: ScheduleConfig, plan: MixturePlan, steps: StepPlan) -> list[int]:
    """Steps completed at the end of each cycle, where the learning rate is lowest; empty if it is not cyclic.

    The learning rate of a step is that at its middle, and so is its cycle. A cycle without a step is left
    out.

    Args:
        schedule: The learning rate.
        plan: The order of the windows.
        steps: The steps of the run.
    """
    if schedule.name != "cyclic":
        return []

    def cycle(step: int) -> int:
        before = position_at(plan, steps, step).tokens
        first, windows = steps.window_range(step)
        return cycle_at((before + plan.tokens_before(first + windows)) / (2 * plan.total_tokens), schedule)

    ends = {bisect_left(range(steps.num_steps), end, key=cycle) for end in range(1, schedule.cycles)}
    return sorted({*ends, steps.num_steps} - {0})
