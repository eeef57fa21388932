"""Plot the schedules of a run: the learning rate, and each regularizer in use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from reptrain.config import RunConfig
from reptrain.config.schedule import step_learning_rate, weight_decay_factor
from reptrain.config.scheduled import Scheduled
from reptrain.errors import ConfigError
from reptrain.plan import MixturePlan, StepPlan, plan_mixture
from reptrain.plan.position import position_at
from reptrain.store import Store, open_store

_KINDS = (".png", ".svg", ".pdf")
_MOST_STEPS = 1000


def schedules(config: RunConfig) -> dict[str, Scheduled]:
    """Every schedulable setting that is not constant 0, by its dotted key."""
    sections = {
        "model.dropout": config.model.dropout,
        "regularize": config.regularize,
        "optimizer": config.optimizer,
    }
    settings_by_key = {
        f"{section}.{key}": value
        for section, settings in sections.items()
        for key, value in settings
        if isinstance(value, Scheduled)
    }
    return {key: value for key, value in settings_by_key.items() if value.largest > 0}


def draw_schedules(config: RunConfig, path: Path) -> None:
    """Plot the learning rate and every schedule against the tokens consumed.

    Args:
        config: The run. A store is opened only to get the size of its subset.
        path: The image file, with the suffix .png, .svg or .pdf.

    Raises:
        ConfigError: If the suffix is not supported.
        StoreError: If a required store cannot be opened.
        PlanError: If the run cannot be planned.
    """
    if path.suffix not in _KINDS:
        raise ConfigError(
            "--plot",
            got=str(path),
            rule=f"must end in one of {', '.join(_KINDS)}",
            remedy="Change the suffix.",
        )
    plan = plan_mixture(config, _unique_tokens(config))
    steps = StepPlan(config.train.batch_windows, plan.total_windows)
    curves = _curves(config, plan, steps)
    figure = Figure(figsize=(7, 1.4 * len(curves) + 0.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(curves), sharex=True))
    for panel, (name, (tokens, values)) in zip(panels, curves.items(), strict=True):
        panel.plot(tokens, values, drawstyle="steps-post")
        panel.set_title(name, loc="left", fontsize=10)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel(f"tokens consumed, of {plan.total_tokens:,}")
    figure.savefig(path, dpi=150)


def _unique_tokens(config: RunConfig) -> dict[str, int]:
    """Size of each source's subset: as configured, or all training tokens of its store."""
    return {
        name: source.unique_tokens or _store(config, name).split("train").num_tokens
        for name, source in config.sources.items()
    }


def _store(config: RunConfig, name: str) -> Store:
    return open_store(config.sources[name].store, named_by=f"{config.store_setting(name)}=FOLDER")


def _curves(
    config: RunConfig, plan: MixturePlan, steps: StepPlan
) -> dict[str, tuple[list[int], list[float]]]:
    """Curves by name: tokens before a step and the value in it, at evenly spaced steps."""
    chosen = np.unique(np.linspace(0, steps.num_steps - 1, _MOST_STEPS).round().astype(int))
    at = [position_at(plan, steps, int(step)) for step in chosen]
    tokens = [progress.tokens for progress in at]
    rates, factors = [], []
    for step in chosen:
        first, windows = steps.window_range(int(step))
        before, after = (plan.tokens_before(window) for window in (first, first + windows))
        rates.append(step_learning_rate(before, after, plan.total_tokens, config.optimizer, config.schedule))
        factors.append(weight_decay_factor(before, after, plan.total_tokens, config.schedule))
    curves = {"learning rate": (tokens, rates)} | {
        name: (tokens, [scheduled.at(progress) for progress in at])
        for name, scheduled in schedules(config).items()
    }
    if (decay := "optimizer.weight_decay") in curves:
        values = zip(curves[decay][1], factors, strict=True)
        curves[decay] = tokens, [value * factor for value, factor in values]
    return curves
