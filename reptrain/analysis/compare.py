"""Which law: cross-validation that extrapolates, as a law will be used.

The rule is fixed: a fold holds out all runs with the largest N, or the largest D, that make up at least 5, 10
or 20 percent of the runs; the law with the lowest mean error over the folds is chosen. Random folds would
reward a law that interpolates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from reptrain.analysis.answers import Comparison, LawScore
from reptrain.analysis.descent import FitProblem, descend, starts
from reptrain.analysis.laws import Law
from reptrain.analysis.one_thread import one_thread
from reptrain.analysis.points import Points
from reptrain.errors import AnalysisError

SHARES = (0.05, 0.10, 0.20)
"""Smallest share of the runs that a fold holds out."""
CV_STARTS = 32
"""Starts of each fit of a fold."""


def folds(points: Points) -> list[NDArray[np.bool_]]:
    """Which points each fold holds out."""
    result: list[NDArray[np.bool_]] = []
    for name in ("N", "D"):
        if name not in points.variables:
            continue
        values = points.variables[name]
        for share in SHARES:
            cut = np.sort(values)[::-1][int(np.ceil(share * len(values))) - 1]
            held = values >= cut
            if not held.all() and not any(np.array_equal(held, other) for other in result):
                result.append(held)
    return result


@one_thread
def cross_validate(
    law: Law, points: Points, *, fixed: Mapping[str, float] | None = None, num_starts: int = CV_STARTS
) -> list[float]:
    """Root mean square error of log loss in each fold.

    Raises:
        AnalysisError: If there is no fold, or a fold leaves too few settings.
    """
    problem = FitProblem(law, points.logs, np.log(points.loss), dict(fixed or {}))
    all_folds = folds(points)
    num_free = int(problem.free.sum())
    left = min((points.at(~held).num_settings for held in all_folds), default=0)
    if left <= num_free:
        raise AnalysisError(
            f"cross-validation of {law.name}",
            got=f"{left} distinct settings in the smallest fold",
            rule=f"must be more than the {num_free} free parameters",
            remedy="Add runs, or compare laws with fewer parameters.",
        )
    errors = []
    for held in all_folds:
        seen, unseen = problem.at(~held), problem.at(held)
        ends = [descend(seen, theta) for theta in starts(seen, num_starts, seed=0)]
        best = min(ends, key=seen.objective)
        errors.append(float(np.sqrt(np.mean(unseen.residuals(best)[0] ** 2))))
    return errors


def compare(laws: Sequence[Law], points: Mapping[str, Points], *, num_starts: int = CV_STARTS) -> Comparison:
    """Cross-validate laws and choose one.

    Args:
        laws: The laws.
        points: Points for each law, by name.
        num_starts: Starts of each fit of a fold.

    Returns:
        The scores, the best law first, and why others have none.
    """
    scores, refused = [], {}
    for law in laws:
        try:
            errors = cross_validate(law, points[law.name], num_starts=num_starts)
        except AnalysisError as error:
            refused[law.name] = str(error)
            continue
        scores.append(LawScore(law=law.name, fold_rmse_log=errors, mean_rmse_log=float(np.mean(errors))))
    scores.sort(key=lambda score: score.mean_rmse_log)
    return Comparison(scores=scores, refused=refused, chosen=scores[0].law if scores else None)
