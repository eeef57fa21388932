"""Effects that come from picks: the regret of a proxy's pick, and the shift of an optimum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

from reptrain.analysis.questions import Optimum, Regret
from reptrain.analysis.rows import NoRunsError, Run, complete_seeds, grouped, matches, mean_of, setting


def regrets(
    runs: Sequence[Run], contrast: Regret, metric: str, excluded: dict[str, str]
) -> tuple[dict[int, float], list[Run]]:
    """The regret in each seed, and the runs. Each seed tunes on its own runs of the proxy."""
    proxy = [run for run in runs if matches(run, contrast.proxy)]
    target = [run for run in runs if matches(run, contrast.target)]
    over, by = contrast.tuned.over, contrast.tuned.by
    values: dict[int, float] = {}
    for seed in complete_seeds([*proxy, *target], excluded):
        of_proxy = [run for run in proxy if run.seed == seed and math.isfinite(run.number(by))]
        own = [run for run in target if run.seed == seed and math.isfinite(run.number(by))]
        if not of_proxy or not own:
            excluded[f"seed {seed}"] = f"no run has {by}"
            continue
        pick = setting(min(of_proxy, key=lambda run: run.number(by)), over)
        at_pick = [run for run in own if setting(run, over) == pick]
        if not at_pick:
            excluded[f"seed {seed}"] = "the target was not run at the proxy's pick"
            continue
        best = min(own, key=lambda run: run.number(by))
        values[seed] = at_pick[0].number(metric) - best.number(metric)
    if not values:
        raise NoRunsError("no seed has both a proxy's pick and a target run at it")
    return values, [*proxy, *target]


def optima(
    runs: Sequence[Run], contrast: Optimum, metric: str, excluded: dict[str, str]
) -> tuple[dict[int, float], list[Run]]:
    """The shift of the best value in each seed, and the runs."""
    sides = [[run for run in runs if matches(run, side)] for side in (contrast.treatment, contrast.control)]
    transform = cast(Callable[[float], float], math.log2 if contrast.scale == "log2" else float)
    values: dict[int, float] = {}
    for seed in complete_seeds([*sides[0], *sides[1]], excluded):
        best = []
        for side in sides:
            points = grouped((run for run in side if run.seed == seed), [contrast.over])
            best.append(
                vertex(
                    [
                        (transform(group[0].number(contrast.over)), mean_of(group, metric))
                        for group in points.values()
                    ]
                )
            )
        values[seed] = best[0] - best[1]
    return values, [*sides[0], *sides[1]]


def vertex(points: Sequence[tuple[float, float]]) -> float:
    """Where the parabola through the lowest point and its two neighbors is lowest.

    At an end of the range it is the end.

    Args:
        points: (x, y), in any order, x distinct.

    >>> vertex([(0.0, 1.0), (1.0, 0.0), (2.0, 1.0)])
    1.0
    """
    ordered = sorted(points)
    lowest = min(range(len(ordered)), key=lambda index: ordered[index][1])
    if lowest in (0, len(ordered) - 1):
        return ordered[lowest][0]
    (x0, y0), (x1, y1), (x2, y2) = ordered[lowest - 1 : lowest + 2]
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (right - left) / (x2 - x0)
    return (x0 + x1) / 2 - left / (2 * curvature) if curvature > 0 else x1
