"""Fits of laws: every local optimum, intervals by the bootstrap, hold-out, residuals, and a checklist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from reptrain.analysis.answers import (
    BudgetAllocation,
    Fit,
    FitScore,
    FittedParameter,
    HoldoutScore,
    LocalMinimum,
    Residual,
)
from reptrain.analysis.bootstrap import bootstrap, interval
from reptrain.analysis.decision import Allocation, best_for_budget
from reptrain.analysis.descent import DELTA, FitProblem, descend, starts
from reptrain.analysis.laws import Law
from reptrain.analysis.laws.base import Floats
from reptrain.analysis.one_thread import one_thread
from reptrain.analysis.points import Points
from reptrain.errors import AnalysisError

NUM_STARTS = 128
"""Number of starts, unless another is given."""
NEAR_BEST = 1.01
"""Optima up to this multiple of the best objective are listed."""
_SAME = 1e-4
"""Two optima are one if no prediction differs by more than this, relatively."""
_MOST_OPTIMA = 12
_LARGEST_COUNT = 100_000
_SINGULAR = 1e-7
_AT_BOUND = 1e-6


@one_thread
def fit_law(
    law: Law,
    points: Points,
    *,
    fixed: Mapping[str, float] | None = None,
    own_starts: Sequence[Mapping[str, float]] = (),
    num_starts: int = NUM_STARTS,
    num_bootstraps: int = 0,
    holdout: Points | None = None,
    budget: tuple[float, float] | None = None,
    seed: int = 0,
) -> Fit:
    """Fit a law to runs.

    Args:
        law: The law.
        points: The runs.
        fixed: Values of parameters that are not fitted.
        own_starts: Starts by parameter name, besides those that variable projection finds. Parameters left
            out take the value of the best of those.
        num_starts: Number of starts by variable projection.
        num_bootstraps: Bootstrap samples for the intervals; 0 for none.
        holdout: Runs that are not fitted, to score the fit once.
        budget: Training FLOPs and unique tokens for which the best size is wanted, with its interval.
        seed: Seed of starts and bootstrap.

    Raises:
        AnalysisError: If the points are too few, or do not determine the law.
    """
    problem = FitProblem(law, points.logs, np.log(points.loss), dict(fixed or {}))
    _check_request(problem, own_starts, {"starts": num_starts, "bootstraps": num_bootstraps}, budget)
    _check_count(problem, points)
    found = _local_optima(problem, own_starts, num_starts, seed)
    best = found[0][1]
    bound = _at_bound(problem, best)
    _check_identified(problem, best, bound)
    ends = [theta for _, theta, _ in found]
    samples, refusal = bootstrap(problem, points.clusters, points.settings, ends, num_bootstraps, seed)
    return Fit(
        law=law.name,
        formula=law.formula,
        source=law.source,
        columns=dict(points.columns),
        metric=points.metric,
        num_points=len(points),
        num_settings=points.num_settings,
        num_clusters=points.num_clusters,
        left_out=points.left_out,
        parameters=_parameters(problem, best, bound, samples),
        delta=DELTA,
        num_starts=num_starts + len(own_starts) if problem.free.any() else 0,
        num_bootstraps=0 if samples is None else len(samples),
        optima=[LocalMinimum(objective=o, reached_from=n, values=law.values(t)) for o, t, n in found],
        score=score(law, best, points, free=int(problem.free.sum()) - len(bound)),
        residuals=_residuals(law, best, points),
        holdout=None if holdout is None else _holdout_score(law, best, holdout, points),
        decision=None if budget is None else _decision(law, best, budget, points, samples),
        seed_deviation_nats=seed_deviation(points),
        warnings=_warnings(problem, points, bound, found, refusal),
    )


def _check_request(
    problem: FitProblem,
    own_starts: Sequence[Mapping[str, float]],
    counts: Mapping[str, int],
    budget: tuple[float, float] | None,
) -> None:
    """Refuse what no fit can be asked for, before any work."""
    for name, count in counts.items():
        if not 0 <= count <= _LARGEST_COUNT:
            raise AnalysisError(
                name, got=count, rule=f"must be from 0 to {_LARGEST_COUNT:,}", remedy="Choose fewer."
            )
    for kind, given in (("fixed parameter", problem.fixed), *(("start", start) for start in own_starts)):
        _check_values(kind, problem.law, given)
    if budget is not None:
        best_for_budget(problem.law, problem.law.values(_middle(problem.law)), *budget)


def _check_values(kind: str, law: Law, given: Mapping[str, float]) -> None:
    known = {parameter.name: parameter for parameter in law.parameters}
    for name, value in given.items():
        if name not in known:
            raise AnalysisError(
                f"{kind} of {law.name}",
                got=name,
                rule=f"must be among {', '.join(known)}",
                remedy="Use one of these names.",
            )
        low, high = known[name].lower, known[name].upper
        if not low <= value <= high:
            raise AnalysisError(
                f"{kind} {name} of {law.name}",
                got=value,
                rule=f"must be from {low:g} to {high:g}",
                remedy="Fix the value.",
            )


def _middle(law: Law) -> Floats:
    return np.array([np.mean([p.coordinate(value) for value in p.starts]) for p in law.parameters])


def _check_count(problem: FitProblem, points: Points) -> None:
    num_free = int(problem.free.sum())
    if num_free and points.num_settings <= num_free:
        raise AnalysisError(
            f"points of the fit of {problem.law.name}",
            got=f"{points.num_settings} distinct settings in {len(points)} runs",
            rule=f"must be at least {num_free + 1} distinct settings, for {num_free} free parameters",
            remedy="Add runs at other settings, fix parameters, or choose a law with fewer.",
        )


def _local_optima(
    problem: FitProblem, own: Sequence[Mapping[str, float]], num_starts: int, seed: int
) -> list[tuple[float, Floats, int]]:
    """(objective, coordinates, number of starts that lead there) near the best, the best first."""
    if not problem.free.any():
        theta = problem.law.coordinates(problem.fixed)
        return [(problem.objective(theta), theta, 0)]
    projected = starts(problem, max(1, num_starts), seed)
    named = [{**problem.law.values(projected[0]), **start, **problem.fixed} for start in own]
    first = [problem.law.coordinates(values) for values in named] + projected[:num_starts]
    lowest = [descend(problem, start) for start in first]
    scored = [(problem.objective(theta), theta) for theta in lowest]
    ends = sorted((end for end in scored if np.isfinite(end[0])), key=lambda end: end[0])
    if not ends:
        raise AnalysisError(
            f"fit of {problem.law.name}",
            got=f"no finite objective from {len(first)} starts",
            rule="must have a finite objective",
            remedy="Check the units of the columns, or give a start with --start.",
        )
    groups: list[tuple[float, Floats, int]] = []
    seen: list[Floats] = []
    for objective, theta in ends:
        if objective > NEAR_BEST * ends[0][0]:
            break
        predicted = problem.residuals(theta)[0]
        same = next((i for i, other in enumerate(seen) if np.abs(predicted - other).max() < _SAME), None)
        if same is not None:
            value, place, count = groups[same]
            groups[same] = (value, place, count + 1)
        elif len(groups) < _MOST_OPTIMA:
            groups.append((objective, theta, 1))
            seen.append(predicted)
    return groups


def _at_bound(problem: FitProblem, theta: Floats) -> list[str]:
    low, high = problem.bounds
    near = (theta - low < _AT_BOUND * (high - low)) | (high - theta < _AT_BOUND * (high - low))
    return [name for name, is_near in zip(problem.law.names, near & problem.free, strict=True) if is_near]


def _check_identified(problem: FitProblem, theta: Floats, bound: Sequence[str]) -> None:
    """Refuse parameters that the points do not determine, by the singular values of the gradient."""
    names = [name for name, free in zip(problem.law.names, problem.free, strict=True) if free]
    inside = [place for place, name in enumerate(names) if name not in bound]
    gradient = problem.residuals(theta)[1][inside]
    if not len(gradient):
        return
    sizes = np.linalg.norm(gradient, axis=1)
    loose = [names[place] for place, size in zip(inside, sizes, strict=True) if size < _SINGULAR]
    if not loose:
        axes, singular, _ = np.linalg.svd(gradient / sizes[:, None], full_matrices=False)
        if singular[-1] < _SINGULAR:
            weights = np.abs(axes[:, -1])
            loose = [names[inside[i]] for i in np.argsort(-weights) if weights[i] > 0.1 * weights.max()]
    if loose:
        raise AnalysisError(
            f"law {problem.law.name}",
            got=f"runs that do not determine {', '.join(loose)}",
            rule="needs runs that determine all its parameters",
            remedy="Vary the variables more, fix these parameters, or choose a law without them.",
        )


def _parameters(
    problem: FitProblem, best: Floats, bound: Sequence[str], samples: Floats | None
) -> list[FittedParameter]:
    result = []
    for place, parameter in enumerate(problem.law.parameters):
        low = high = None
        free = bool(problem.free[place])
        if samples is not None and free:
            low, high = (parameter.value(edge) for edge in interval(samples[:, place]))
        result.append(
            FittedParameter(
                name=parameter.name,
                meaning=parameter.meaning,
                value=parameter.value(float(best[place])),
                low=low,
                high=high,
                fixed=not free,
                at_bound=parameter.name in bound,
            )
        )
    return result


def score(law: Law, theta: Floats, points: Points, *, free: int | None = None) -> FitScore:
    """How well a law with these coordinates describes points.

    Args:
        law: The law.
        theta: Its coordinates.
        points: The points.
        free: Number of parameters that were fitted to them, for AICc. None for points that were not fitted.
    """
    log_loss = np.log(points.loss)
    errors = law.log_loss(theta, points.logs)[0] - log_loss
    in_nats = points.loss * np.expm1(errors)
    num, squares = len(points), float(errors @ errors)
    size = np.abs(errors)
    objective = np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA)).sum()
    return FitScore(
        objective=float(objective),
        r2_loss=_r2(points.loss, in_nats),
        r2_log_loss=_r2(log_loss, errors),
        rmse_nats=float(np.sqrt(np.mean(in_nats**2))),
        rmse_log=float(np.sqrt(squares / num)),
        aicc=None if free is None else _aicc(num, squares, free),
    )


def _aicc(num: int, squares: float, free: int) -> float | None:
    # Gaussian errors of log loss; their variance is one more parameter.
    used = free + 1
    if num <= used + 1 or squares <= 0.0:
        return None
    return float(num * np.log(squares / num) + 2 * used + 2 * used * (used + 1) / (num - used - 1))


def _r2(measured: Floats, errors: Floats) -> float | None:
    spread = float(np.sum((measured - measured.mean()) ** 2))
    return 1.0 - float(errors @ errors) / spread if spread > 0.0 else None


def _residuals(law: Law, theta: Floats, points: Points) -> list[Residual]:
    predicted = np.exp(law.log_loss(theta, points.logs)[0])
    return [
        Residual(
            run=label,
            variables={name: float(values[place]) for name, values in points.variables.items()},
            loss=float(points.loss[place]),
            predicted=float(predicted[place]),
        )
        for place, label in enumerate(points.labels)
    ]


def seed_deviation(points: Points) -> float | None:
    """Pooled standard deviation of the loss between seeds of one arm, in nats; None without replicates."""
    squares, freedom = 0.0, 0
    arms = points.arms
    for arm in np.unique(arms):
        losses = points.loss[arms == arm]
        squares += float(np.sum((losses - losses.mean()) ** 2))
        freedom += len(losses) - 1
    return float(np.sqrt(squares / freedom)) if freedom else None


def _holdout_score(law: Law, theta: Floats, holdout: Points, points: Points) -> HoldoutScore:
    names = [name for name in ("N", "D") if name in points.variables] or list(points.variables)
    return HoldoutScore(
        num_points=len(holdout),
        runs=list(holdout.labels),
        score=score(law, theta, holdout),
        extrapolation={
            name: float(holdout.variables[name].max() / points.variables[name].max()) for name in names
        },
        residuals=_residuals(law, theta, holdout),
    )


def _decision(
    law: Law, best: Floats, budget: tuple[float, float], points: Points, samples: Floats | None
) -> BudgetAllocation:
    compute, unique = budget
    chosen = best_for_budget(law, law.values(best), compute, unique)
    low = high = None
    if samples is not None:
        drawn = np.array([best_for_budget(law, law.values(theta), compute, unique) for theta in samples])
        edges = np.percentile(drawn, [2.5, 97.5], axis=0)
        low, high = (dict(zip(Allocation._fields, edge.tolist(), strict=True)) for edge in edges)
    largest = float((6.0 * points.variables["N"] * points.variables["D"]).max())
    return BudgetAllocation(
        budget_flops=compute,
        unique_tokens=unique,
        **chosen._asdict(),
        low=low,
        high=high,
        extrapolation=compute / largest,
    )


def _warnings(
    problem: FitProblem,
    points: Points,
    bound: Sequence[str],
    found: Sequence[tuple[float, Floats, int]],
    refusal: str | None,
) -> list[str]:
    result = []
    if len(found) > 1:
        result.append(f"{len(found)} local optima lie within 1% of the best: the runs do not separate them.")
    for name in bound:
        value = problem.law.values(found[0][1])[name]
        result.append(f"{name} is at its bound, {value:g}: the runs give no finite value, only a direction.")
    if found[0][2] == 1 and problem.free.any():
        result.append("Only one start leads to the best optimum: use more starts.")
    if refusal is not None:
        result.append(f"No intervals: {refusal}.")
    if points.left_out:
        result.append(f"{points.left_out} rows without a loss are left out.")
    return result
