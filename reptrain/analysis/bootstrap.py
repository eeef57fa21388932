"""The bootstrap of a fit: whole clusters are resampled, never checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reptrain.analysis.descent import FitProblem, descend
from reptrain.analysis.laws.base import Floats

FEWEST_CLUSTERS = 5
"""With fewer clusters there is no bootstrap."""
_ROUNDS = 2
_WARM_STARTS = 3
_MOST_REDRAWN = 0.1


class Bootstrap(NamedTuple):
    """Refits of samples.

    Args:
        samples: Coordinates, shape (samples, parameters), or None.
        refusal: Why there are none, if some were asked for.
    """

    samples: Floats | None
    refusal: str | None = None


def bootstrap(
    problem: FitProblem,
    clusters: NDArray[np.int64],
    settings: NDArray[np.int64],
    optima: Sequence[Floats],
    num_samples: int,
    seed: int,
) -> Bootstrap:
    """Refit samples of the clusters, drawn with replacement.

    Each sample is fitted from the best optima of the data, so that it may move from one to another.

    Args:
        problem: The law and its points.
        clusters: Cluster of each point, from 0.
        settings: Setting of the variables of each point.
        optima: Coordinates to start from, the best first.
        num_samples: Number of samples.
        seed: Seed of the draws.
    """
    num_clusters = int(clusters.max()) + 1
    if not num_samples or not problem.free.any():
        return Bootstrap(None)
    if num_clusters < FEWEST_CLUSTERS:
        return Bootstrap(
            None,
            f"{num_clusters} clusters are too few for a bootstrap, which needs {FEWEST_CLUSTERS}",
        )
    weights = _draw(problem, clusters, settings, num_samples, seed)
    if len(weights) < num_samples:
        return Bootstrap(
            None, "too many bootstrap samples of the clusters have fewer settings than the law needs"
        )
    result = np.empty((num_samples, len(problem.law.parameters)))
    for sample, drawn in enumerate(weights):
        ends = [descend(problem, theta, drawn, _ROUNDS) for theta in optima[:_WARM_STARTS]]
        result[sample] = min(ends, key=lambda theta: problem.objective(theta, drawn))
    return Bootstrap(result)


def _draw(
    problem: FitProblem, clusters: NDArray[np.int64], settings: NDArray[np.int64], num_samples: int, seed: int
) -> Floats:
    """Weights of the points in samples that determine the law, at most `num_samples` of them."""
    num_clusters = int(clusters.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(
        num_clusters,
        np.full(num_clusters, 1.0 / num_clusters),
        size=int(np.ceil(num_samples * (1.0 + _MOST_REDRAWN))),
    )
    weights = drawn[:, clusters].astype(np.float64)
    present = np.zeros((len(weights), int(settings.max()) + 1), bool)
    for setting in range(present.shape[1]):
        present[:, setting] = (weights[:, settings == setting] > 0.0).any(axis=1)
    enough = present.sum(axis=1) > int(problem.free.sum())
    return np.asarray(weights[enough][:num_samples], np.float64)


def interval(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval."""
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)
