"""The learning rate as a pure function of the completed share of the run."""

from __future__ import annotations

import math

from reptrain.config.optimizers import OptimizerConfig, ScheduleConfig


def step_learning_rate(
    before: int, after: int, total: int, optimizer: OptimizerConfig, schedule: ScheduleConfig
) -> float:
    """The learning rate of a step: the schedule at the middle of the step.

    The rate is thus above 0 in the first step of a warm-up from 0, and in the last step of a decay to 0.

    Args:
        before: Tokens consumed before the step.
        after: Tokens consumed after the step.
        total: Tokens of the run.
        optimizer: Contains the peak rate.
        schedule: The shape.
    """
    return learning_rate((before + after) / (2 * total), optimizer, schedule)


def weight_decay_factor(before: int, after: int, total: int, schedule: ScheduleConfig) -> float:
    """Factor on the weight decay of a step: `weight_decay_ratio` at the lowest learning rate, 1 at its peak.

    Args:
        before: Tokens consumed before the step.
        after: Tokens consumed after the step.
        total: Tokens of the run.
        schedule: The shape of the learning rate.

    Source:
        "q0", arXiv 2606.03938, 2026: a cyclic rate with an anti-correlated decay.
    """
    done = (before + after) / (2 * total)
    if schedule.weight_decay_ratio == 1 or schedule.final_ratio == 1 or done < schedule.warmup_fraction:
        return 1.0
    share = (1 - _shape(done, schedule)) / (1 - schedule.final_ratio)
    return 1 + (schedule.weight_decay_ratio - 1) * share


def learning_rate(done: float, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """The learning rate after a share ``done`` of the run's tokens.

    Args:
        done: Tokens consumed over tokens of the run, in (0, 1].
        optimizer: Contains the peak rate.
        schedule: The shape.

    Returns:
        The peak rate times the value of the shape. ``cosine`` follows Loshchilov & Hutter (2017) without
        restarts, ``cyclic`` with restarts at the peak; ``inverse_sqrt`` decays with the inverse square root
        of the tokens after the warm-up (Vaswani et al. 2017); ``wsd`` is constant and then decays linearly
        (Hu et al. 2024, MiniCPM).
    """
    warmup = schedule.warmup_fraction
    if done < warmup:
        return optimizer.lr * done / warmup
    return optimizer.lr * _shape(done, schedule)


def cycle_at(done: float, schedule: ScheduleConfig) -> int:
    """The cycle, from 0, after a share ``done`` of the run's tokens; the warm-up belongs to the first one."""
    after_warmup = _after_warmup(done, schedule)
    return min(max(0, int(after_warmup * schedule.cycles)), schedule.cycles - 1)


def _after_warmup(done: float, schedule: ScheduleConfig) -> float:
    warmup = schedule.warmup_fraction
    return (done - warmup) / (1 - warmup) if warmup < 1 else 1.0


def _shape(done: float, schedule: ScheduleConfig) -> float:
    warmup, final = schedule.warmup_fraction, schedule.final_ratio
    after_warmup = _after_warmup(done, schedule)
    match schedule.name:
        case "constant":
            return 1.0
        case "cosine":
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * after_warmup))
        case "cyclic":
            in_cycle = after_warmup * schedule.cycles % 1 if after_warmup < 1 else 1.0
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * in_cycle))
        case "linear":
            return 1 - (1 - final) * after_warmup
        case "inverse_sqrt":
            return math.sqrt(warmup / done) if warmup > 0 else 1 / math.sqrt(1 + after_warmup)
        case "wsd":
            in_decay = max(0.0, (done - (1 - schedule.decay_fraction)) / schedule.decay_fraction)
            return 1 - (1 - final) * in_decay
