"""FLOPs of the steps of a run, with the losses that are on in each."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from reptrain.config import RunConfig
from reptrain.config.scheduled import Scheduled
from reptrain.plan.cycles import cycle_ends
from reptrain.plan.position import position_at
from reptrain.plan.shared_steps import RunSteps
from reptrain.sizes.flops import train_flops_per_window
from reptrain.sizes.step_flops import teacher_flops


class RunFlops:
    """FLOPs of the steps of a run; a step counts the losses that are on in it.

    Args:
        config: The run.
        vocab_size: Vocabulary size of the tokenizer.
        steps: Its steps.

    Raises:
        ConfigError: As `step_flops` does.
    """

    def __init__(self, config: RunConfig, vocab_size: int, steps: RunSteps) -> None:
        self._steps = steps
        per_window = train_flops_per_window(config.model, vocab_size, config.example_shape)
        self._per_token = per_window / config.window_tokens
        teacher = teacher_flops(config, vocab_size)
        self.is_complete = teacher is not None
        """Whether the settings of all teachers are known."""
        self._teacher_per_token = (teacher or 0) / config.window_tokens
        self._masked = self._steps_with(config.regularize.masked_inputs)
        self._taught = range(0)
        if config.distill is not None:
            first = 0 if config.distill.teacher else self._end_of_the_first_cycle()
            taught = self._steps_with(config.distill.weight)
            self._taught = range(max(first, taught.start), taught.stop)

    def between(self, first: int, end: int) -> float:
        """FLOPs of the steps [first, end)."""
        masked, taught = (self._within(steps, first, end) for steps in (self._masked, self._taught))
        both = range(max(masked.start, taught.start), min(masked.stop, taught.stop))
        copies = self._tokens(masked)
        return (self._tokens(range(first, end)) + copies) * self._per_token + (
            self._tokens(taught) + self._tokens(both)
        ) * self._teacher_per_token

    @property
    def total(self) -> float:
        """FLOPs of the whole run."""
        return self.between(0, self._steps.steps.num_steps)

    def _within(self, steps: range, first: int, end: int) -> range:
        return range(max(steps.start, first), min(steps.stop, end))

    def _tokens(self, steps: range) -> int:
        if not steps:
            return 0
        each = self._steps.steps
        ends = (min(step * each.batch_windows, each.total_windows) for step in (steps.start, steps.stop))
        before, after = (self._steps.plan.tokens_before(windows) for windows in ends)
        return after - before

    def _steps_with(self, weight: Scheduled) -> range:
        """The steps in which a weight is above 0. A schedule moves one way, so they follow each other."""
        number = self._steps.steps.num_steps

        def is_on(step: int) -> bool:
            return weight.at(position_at(self._steps.plan, self._steps.steps, step)) > 0

        starts_on, ends_on = is_on(0), is_on(number - 1)
        if starts_on == ends_on:
            return range(number) if starts_on else range(0)
        change = _first(number, lambda step: is_on(step) == ends_on)
        return range(change, number) if ends_on else range(change)

    def _end_of_the_first_cycle(self) -> int:
        ends = cycle_ends(self._steps.config.schedule, self._steps.plan, self._steps.steps)
        return ends[0]


def _first(number: int, holds: Callable[[int], bool]) -> int:
    """The first of ``number`` steps for which a monotone condition holds."""
    return bisect_left(range(number), True, key=holds)
