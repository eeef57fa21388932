"""The best size and number of epochs for a compute budget and a number of unique tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from reptrain.analysis.laws import Law
from reptrain.analysis.laws.base import Floats
from reptrain.analysis.tables import check_positive
from reptrain.errors import AnalysisError

_SIZES, _BUDGETS, _ZOOMS = 161, 33, 4
_SIZE_SPAN, _BUDGET_SPAN = np.log(1e4), np.log(1e4)


class Allocation(NamedTuple):
    """A size and a number of tokens.

    Args:
        parameters: N.
        tokens: Consumed tokens D.
        epochs: Consumed over unique tokens, at least 1.
        loss_nats: Predicted loss.
        compute_flops: 6 N D, at most the budget.
    """

    parameters: float
    tokens: float
    epochs: float
    loss_nats: float
    compute_flops: float


class Held(NamedTuple):
    """The quantity that is held fixed besides the budget, so that only the size is chosen.

    Args:
        what: Consumed tokens D, or tokens per parameter D/N.
        value: Its value.
    """

    what: Literal["tokens", "tokens per parameter"]
    value: float

    def tokens(self, parameters: Floats) -> Floats:
        """The tokens of a run of each size."""
        if self.what == "tokens":
            return np.full_like(parameters, self.value)
        return self.value * parameters

    def largest(self, compute: float) -> float:
        """The largest size within a budget of 6 N D FLOPs."""
        ratio = compute / (6.0 * self.value)
        return ratio if self.what == "tokens" else float(np.sqrt(ratio))


def best_for_budget(
    law: Law,
    values: Mapping[str, float],
    compute: float,
    unique_tokens: float,
    held: Held | None = None,
) -> Allocation:
    """The size and tokens with the lowest loss within a budget, 6 N D <= compute.

    By default only compute is held fixed: a larger model sees fewer tokens. Where excess repeats or
    parameters hurt, less than the budget may be best. A run that consumes fewer tokens than there are sees
    each at most once.

    Args:
        law: A law in N and D, with or without U.
        values: Its parameters.
        compute: Budget in training FLOPs.
        unique_tokens: Available unique tokens.
        held: The quantity that is held fixed besides the budget.

    Raises:
        AnalysisError: If the law does not have N and D, or a quantity is not positive.
    """
    check_positive(compute=compute, unique_tokens=unique_tokens)
    if not {"N", "D"} <= set(law.variables):
        raise AnalysisError(
            f"law {law.name}",
            got=f"the variables {', '.join(law.variables)}",
            rule="must be a law in N and D to choose a size for a budget",
            remedy="Fit another law, or leave the budget out.",
        )
    if held is not None:
        return _best_held(law, values, compute, unique_tokens, held)
    center = 0.5 * np.log(compute / 6.0)
    sizes = np.linspace(center - _SIZE_SPAN, center + _SIZE_SPAN, _SIZES)
    budgets = np.linspace(np.log(compute) - _BUDGET_SPAN, np.log(compute), _BUDGETS)
    for _ in range(_ZOOMS):
        size, budget = np.meshgrid(sizes, budgets, indexing="ij")
        loss = _loss(law, values, size, budget, unique_tokens)
        row, place = np.unravel_index(int(np.argmin(loss)), loss.shape)
        found = size[row, place], budget[row, place], loss[row, place]
        sizes, budgets = _zoom(sizes, int(row)), _zoom(budgets, int(place))
    parameters, spent = float(np.exp(found[0])), float(np.exp(found[1]))
    tokens = spent / (6.0 * parameters)
    return Allocation(parameters, tokens, max(1.0, tokens / unique_tokens), float(found[2]), spent)


def _best_held(
    law: Law, values: Mapping[str, float], compute: float, unique_tokens: float, held: Held
) -> Allocation:
    check_positive(**{held.what.replace(" ", "_"): held.value})
    largest = np.log(held.largest(compute))
    sizes = np.linspace(largest - 2.0 * _SIZE_SPAN, largest, 2 * _SIZES)
    for _ in range(_ZOOMS):
        parameters = np.exp(sizes)
        tokens = held.tokens(parameters)
        loss = law.loss(values, {"N": parameters, "D": tokens, "U": np.minimum(unique_tokens, tokens)})
        place = int(np.argmin(loss))
        chosen, lowest = parameters[place : place + 1], float(loss[place])
        sizes = _zoom(sizes, place)
    size, consumed = float(chosen[0]), float(held.tokens(chosen)[0])
    return Allocation(size, consumed, max(1.0, consumed / unique_tokens), lowest, 6.0 * size * consumed)


def _loss(law: Law, values: Mapping[str, float], size: Floats, budget: Floats, unique: float) -> Floats:
    parameters = np.exp(size)
    tokens = np.exp(budget) / (6.0 * parameters)
    return law.loss(values, {"N": parameters, "D": tokens, "U": np.minimum(unique, tokens)})


def _zoom(axis: Floats, place: int) -> Floats:
    """The neighborhood of a place, as finely divided."""
    return np.linspace(axis[max(0, place - 1)], axis[min(len(axis) - 1, place + 1)], len(axis))
