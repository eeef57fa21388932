"""The first steps that two runs have in common: the same windows under the same settings."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from reptrain.config import RunConfig, settings_affecting_results
from reptrain.config.json_digest import fingerprint
from reptrain.config.schedule import step_learning_rate, weight_decay_factor
from reptrain.config.scheduled import Moment, RunPosition, Scheduled, Unit
from reptrain.plan.mixture import MixturePlan, plan_mixture
from reptrain.plan.shard import StepPlan

_LONGEST, _MOST_WINDOWS = 2**17, 2**24
# Settings that enter a step only through the functions in `_settings_at`.
_RESOLVED = ("schedule", "regularize.label_smoothing", "regularize.z_loss", "regularize.input_noise",
             "regularize.masked_inputs", "optimizer.weight_decay", "model.dropout", "average.start",
             "distill.weight", "train.total_tokens")  # fmt: skip
StepSettings = tuple[Any, ...]


class RunSteps:
    """The steps of a run, resolved one by one.

    Args:
        config: The run.
        unique_tokens: U of each source, by name.

    Raises:
        PlanError: If the run cannot be planned.
    """

    def __init__(self, config: RunConfig, unique_tokens: Mapping[str, int]) -> None:
        self.config = config
        self.plan: MixturePlan = plan_mixture(config, unique_tokens)
        self.steps = StepPlan(config.train.batch_windows, self.plan.total_windows)
        self._settings: list[StepSettings] = []

    @cached_property
    def kind(self) -> str:
        """Fingerprint of all that does not change during a run. Runs of different kinds share no step."""
        fixed = {
            key: value
            for key, value in settings_affecting_results(self.config).items()
            if not _is_resolved(key)
        }
        if self.config.optimizer.name != "muon":
            # Muon's two rates have a ratio, so its peak rate must be the same.
            del fixed["optimizer.lr"]
        return fingerprint(
            [fixed, self.config.train.on_nonfinite, self.config.evaluate.patience, self._windows()]
        )

    def _windows(self) -> list[Any]:
        """What decides which windows come first."""
        if len(self.plan.plans) == 1 and self.plan.plans[0].order != "mixed":
            (plan,) = self.plan.plans
            return [plan.unique_tokens, plan.window_tokens, plan.order, plan.cut, plan.seed]
        # The order of a mixture, and of epochs that are mixed, depends on the total.
        return [repr(plan) for plan in self.plan.plans]

    @property
    def num_compared(self) -> int:
        """Number of steps to compare one by one; 0 for a run with too many steps."""
        num_steps = self.steps.num_steps
        return num_steps if num_steps <= _LONGEST else 0

    def settings(self, step: int) -> StepSettings:
        """Learning rate, regularizers and windows of a step."""
        while len(self._settings) <= step:
            self._settings.append(self.settings_at(len(self._settings)))
        return self._settings[step]

    @property
    def course(self) -> list[Any]:
        """The settings that determine the learning rate and the windows of every step, for similar runs."""
        return [self.plan.total_tokens, self.steps.num_steps, self.config.schedule, self.config.optimizer.lr]

    def changes(self) -> set[int]:
        """Steps around which regularizers, or the average of the weights, begin or end to change."""
        steps = {0}
        for moment in self._moments():
            first = bisect_left(range(self.steps.num_steps), moment.amount, key=self._progress(moment.unit))
            steps |= {first - 1, first, first + 1}
        return steps | {step + 1 for step in steps}

    def _moments(self) -> list[Moment]:
        average = self.config.average
        moments = [average.start] if average is not None else []
        for value in _scheduled(self.config):
            if value.over is None:
                moments.append(value.start)
            else:
                end = Moment(value.start.amount + value.over.amount, value.over.unit)
                moments += [Moment(value.start.amount, value.over.unit), end]
        return moments

    def _progress(self, unit: Unit) -> Callable[[int], Fraction]:
        return lambda step: self._position(step).position(unit)

    def _position(self, step: int) -> RunPosition:
        return RunPosition(
            step=step,
            tokens=self._tokens_before(step),
            total_tokens=self.plan.total_tokens,
            epochs=Fraction(self.steps.window_range(step)[0], self.plan.windows_per_epoch),
        )

    def settings_at(self, step: int) -> StepSettings:
        """`settings`, without those of the steps before it."""
        config = self.config
        windows = self.steps.window_range(step)[1]
        position = self._position(step)
        after = self._tokens_before(step + 1)
        lr = step_learning_rate(
            position.tokens, after, position.total_tokens, config.optimizer, config.schedule
        )
        return (
            windows,
            lr,
            weight_decay_factor(position.tokens, after, position.total_tokens, config.schedule),
            *(value.at(position) for value in _scheduled(config)),
            *_average(config, position),
        )

    def _tokens_before(self, step: int) -> int:
        if self._tokens is None:
            return self.plan.tokens_before(min(step * self.steps.batch_windows, self.steps.total_windows))
        return int(self._tokens[step])

    @cached_property
    def _tokens(self) -> npt.NDArray[np.int64] | None:
        """Tokens before each step; None for a run of too many windows to list."""
        total, batch = self.steps.total_windows, self.steps.batch_windows
        if total > _MOST_WINDOWS:
            return None
        lengths = self.plan.tokens_of(np.arange(total, dtype=np.int64))
        return np.concatenate([[0], np.cumsum(np.add.reduceat(lengths, np.arange(0, total, batch)))])

    @property
    def can_share(self) -> bool:
        """Whether the run can share steps at all.

        Early stopping depends on the evaluations. Distillation from the previous cycle needs the checkpoint
        at its end, which a branch does not have.
        """
        return self.config.evaluate.patience is None and not self.config.distills_itself


def _is_resolved(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _RESOLVED)


def _scheduled(config: RunConfig) -> list[Scheduled]:
    dropout, regularize = config.model.dropout, config.regularize
    return [
        *(getattr(dropout, name) for name in type(dropout).model_fields),
        regularize.label_smoothing,
        regularize.z_loss,
        regularize.input_noise,
        regularize.masked_inputs,
        config.optimizer.weight_decay,
        *([config.distill.weight] if config.distill is not None else []),
    ]


def _average(config: RunConfig, position: RunPosition) -> list[bool]:
    """Whether the average of the weights has started."""
    if config.average is None:
        return []
    start = config.average.start
    return [position.position(start.unit) >= start.amount]


def shared_steps(one: RunSteps, other: RunSteps) -> int:
    """The number of first steps in which two runs compute the same, bit for bit on the same topology.

    It ends at the first step where any resolved function (learning rate, regularizers, windows) differs.
    """
    if not (one.can_share and other.can_share) or one.kind != other.kind:
        return 0
    if one.course == other.course:
        return _shared_on_one_course(one, other)
    compared = min(one.num_compared, other.num_compared)
    steps = (step for step in range(compared) if one.settings(step) != other.settings(step))
    return next(steps, compared)


def _shared_on_one_course(one: RunSteps, other: RunSteps) -> int:
    """`shared_steps` of runs with the same learning rate and windows, from a few steps.

    Between two changes, every regularizer is constant or linear. Values that are equal in the first two steps
    after a change are therefore equal until the next change.
    """
    num_steps = one.steps.num_steps
    steps = sorted(step for step in one.changes() | other.changes() if 0 <= step < num_steps)
    differing = (step for step in steps if one.settings_at(step) != other.settings_at(step))
    return next(differing, num_steps)
