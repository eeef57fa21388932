"""The best size and number of epochs for a compute budget and a number of unique tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import minimize_scalar

from reptrain.analysis.laws import Law
from reptrain.analysis.laws.base import Floats
from reptrain.errors import AnalysisError

_GRID = 241
_SPAN = np.log(1e4)


def best_for_budget(
    law: Law, values: Mapping[str, float], compute: float, unique_tokens: float
) -> tuple[float, float, float, float]:
    """The size with the lowest loss when 6 N D FLOPs are spent.

    Compute is held fixed: a larger model sees fewer tokens. A run that consumes fewer tokens than there are
    sees each at most once.

    Args:
        law: A law in N and D, with or without U.
        values: Its parameters.
        compute: Training FLOPs, 6 N D.
        unique_tokens: Unique tokens at hand.

    Returns:
        Parameters, consumed tokens, epochs, and loss in nats.

    Raises:
        AnalysisError: If the law does not have N and D.
    """
    if not {"N", "D"} <= set(law.variables):
        raise AnalysisError(
            f"law {law.name}",
            got=f"the variables {', '.join(law.variables)}",
            rule="must be a law in N and D to choose a size for a budget",
            remedy="Fit another law, or leave the budget out.",
        )

    def loss(log_size: Floats) -> Floats:
        size = np.exp(log_size)
        tokens = compute / (6.0 * size)
        return law.loss(values, {"N": size, "D": tokens, "U": np.minimum(unique_tokens, tokens)})

    center = 0.5 * np.log(compute / 6.0)
    grid = np.linspace(center - _SPAN, center + _SPAN, _GRID)
    best = int(np.argmin(loss(grid)))
    low, high = grid[max(0, best - 1)], grid[min(_GRID - 1, best + 1)]
    found = minimize_scalar(lambda x: float(loss(np.array([x]))[0]), bounds=(low, high), method="bounded")
    size = float(np.exp(found.x))
    tokens = compute / (6.0 * size)
    return size, tokens, tokens / min(unique_tokens, tokens), float(found.fun)
