"""Tables of runs with known answers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from reptrain.analysis.laws import find_law

COLUMNS = {"N": "size", "D": "tokens", "U": "unique"}


def made_table(
    law: str, values: Mapping[str, float], *, noise: float, seed: int, num_runs: int = 120, clusters: int = 0
) -> pa.Table:
    """Runs whose losses follow a law, times exp(noise).

    Args:
        law: Name of a law in N, D and U.
        values: Its parameters.
        noise: Standard deviation of log loss.
        seed: Seed of settings and noise.
        num_runs: Number of rows.
        clusters: Number of clusters that share their noise; 0 for none.
    """
    rng = np.random.default_rng(seed)
    size = 10 ** rng.uniform(7, 9.5, num_runs)
    unique = 10 ** rng.uniform(8, 10.5, num_runs)
    tokens = unique * 10 ** (rng.uniform(0, 2, num_runs) * (rng.random(num_runs) > 0.3))
    errors = rng.normal(0.0, noise, num_runs)
    columns = {"size": size, "tokens": tokens, "unique": unique}
    if clusters:
        names = rng.integers(0, clusters, num_runs)
        errors = rng.normal(0.0, noise, clusters)[names] + 0.1 * errors
        columns["cluster"] = names
    loss = find_law(law).loss(values, {"N": size, "D": tokens, "U": unique}) * np.exp(errors)
    return pa.table({**columns, "loss": loss, "run": [f"run-{i}" for i in range(num_runs)]})


TRUTH = {
    "chinchilla": {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.36},
    "data-constrained": {
        "E": 1.87,
        "A": 520.0,
        "B": 1490.0,
        "alpha": 0.35,
        "beta": 0.36,
        "R_D": 15.0,
        "R_N": 5.0,
    },
    "excess-1": {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.36, "P": 0.005},
    "excess-2": {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.36, "P": 0.05, "delta": 0.5},
    "excess-saturating": {
        "E": 1.8,
        "A": 480.0,
        "B": 2000.0,
        "alpha": 0.35,
        "beta": 0.36,
        "P": 0.5,
        "kappa": 0.6,
        "R_P": 20.0,
    },
    "skaling": {"E": 1.6, "A": 700.0, "B": 4e5, "alpha": 0.32, "beta": 0.59, "k": 0.7},
    "unique-term": {
        "E": 1.5,
        "A": 480.0,
        "B": 9000.0,
        "alpha": 0.35,
        "beta": 0.45,
        "C": 20.0,
        "gamma": 0.2,
    },
}
"""Constants to recover."""
