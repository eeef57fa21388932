"""The bootstrap of a fit: whole clusters are resampled, never checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reptrain.analysis.descent import Problem, descend
from reptrain.analysis.laws.base import Floats

FEWEST_CLUSTERS = 5
"""With fewer clusters there is no bootstrap."""
_ROUNDS = 2
_WARM_STARTS = 3


def bootstrap(
    problem: Problem, clusters: NDArray[np.int64], optima: Sequence[Floats], num_samples: int, seed: int
) -> Floats | None:
    """Refit samples of the clusters, drawn with replacement.

    Each sample is fitted from the best optima of the data, so that it may move from one to another.

    Args:
        problem: The law and its points.
        clusters: Cluster of each point, from 0.
        optima: Coordinates to start from, the best first.
        num_samples: Number of samples.
        seed: Seed of the draws.

    Returns:
        Coordinates, shape (samples, parameters), or None if there is nothing to draw from.
    """
    num_clusters = int(clusters.max()) + 1
    if not num_samples or num_clusters < FEWEST_CLUSTERS or not problem.free.any():
        return None
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_clusters, np.full(num_clusters, 1.0 / num_clusters), size=num_samples)
    result = np.empty((num_samples, len(problem.law.parameters)))
    for sample, drawn in enumerate(counts):
        weights = drawn[clusters].astype(np.float64)
        ends = [descend(problem, theta, weights, _ROUNDS) for theta in optima[:_WARM_STARTS]]
        result[sample] = min(ends, key=lambda theta: problem.objective(theta, weights))
    return result


def interval(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval."""
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)
