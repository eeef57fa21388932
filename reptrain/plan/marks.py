"""The numbers of completed steps at which a run evaluates or saves."""

from __future__ import annotations

from reptrain.config.sections import EvaluateConfig


def marks(num_steps: int, fraction: float) -> set[int]:
    """The numbers of completed steps at every ``fraction`` of the run, and at its end."""
    fraction = max(fraction, 1 / num_steps)
    parts = range(1, int(1 / fraction + 1e-9) + 1)
    return {max(1, round(part * fraction * num_steps)) for part in parts} | {num_steps}


def evaluation_steps(evaluate: EvaluateConfig, num_steps: int) -> set[int]:
    """The numbers of completed steps at which a run of ``num_steps`` steps evaluates, except 0."""
    return marks(num_steps, evaluate.every_fraction) | {*evaluate.at_steps}
