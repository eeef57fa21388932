"""The learning rate as a pure function of the share of the run that is done."""

from __future__ import annotations

import math

from reptrain.config.optimizers import OptimizerConfig, ScheduleConfig


def step_learning_rate(
    before: int, after: int, total: int, optimizer: OptimizerConfig, schedule: ScheduleConfig
) -> float:
    """The rate of a step: the schedule's in its middle, so that neither a rise from 0 nor a fall to it leaves
    the first or the last step without one.

    Args:
        before: Tokens consumed when the step begins.
        after: The same when it ends.
        total: Tokens of the run.
        optimizer: Gives the peak rate.
        schedule: The shape.
    """
    return learning_rate((before + after) / (2 * total), optimizer, schedule)


def learning_rate(done: float, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """The rate when a share ``done`` of the run's tokens is consumed.

    Args:
        done: Tokens consumed over tokens of the run, in (0, 1].
        optimizer: Gives the peak rate.
        schedule: The shape.

    Returns:
        Peak rate times the shape's value. ``cosine`` follows Loshchilov & Hutter (2017) without restarts;
        ``inverse_sqrt`` falls with the root of the tokens after the warm-up (Vaswani et al. 2017);
        ``wsd`` is constant and then decays linearly (Hu et al. 2024, MiniCPM).
    """
    warmup = schedule.warmup_fraction
    if done < warmup:
        return optimizer.lr * done / warmup
    return optimizer.lr * _shape(done, schedule)


def _shape(done: float, schedule: ScheduleConfig) -> float:
    warmup, final = schedule.warmup_fraction, schedule.final_ratio
    after_warmup = (done - warmup) / (1 - warmup) if warmup < 1 else 1.0
    match schedule.name:
        case "constant":
            return 1.0
        case "cosine":
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * after_warmup))
        case "linear":
            return 1 - (1 - final) * after_warmup
        case "inverse_sqrt":
            return math.sqrt(warmup / done) if warmup > 0 else 1 / math.sqrt(1 + after_warmup)
        case "wsd":
            in_decay = max(0.0, (done - (1 - schedule.decay_fraction)) / schedule.decay_fraction)
            return 1 - (1 - final) * in_decay
