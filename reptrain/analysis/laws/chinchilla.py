"""Chinchilla's parametric law. Repeated tokens count as fresh ones."""

from __future__ import annotations

from collections.abc import Sequence

from reptrain.analysis.laws.base import (
    ALPHA,
    BETA,
    DATA,
    ENTROPY,
    SIZE,
    Coordinates,
    Law,
    Logs,
    Term,
    constant,
    decay,
)


def _terms(p: Coordinates, logs: Logs) -> Sequence[Term]:
    return constant("E", p), decay("A", "alpha", p, logs["N"]), decay("B", "beta", p, logs["D"])


LAW = Law(
    name="chinchilla",
    formula="E + A / N^alpha + B / D^beta",
    source="Hoffmann et al., Training compute-optimal large language models, 2022, approach 3",
    variables=("N", "D"),
    parameters=(ENTROPY, SIZE, DATA, ALPHA, BETA),
    terms=_terms,
    scales=(("E",), ("A",), ("B",)),
    published={
        "hoffmann2022": {"E": 1.6934, "A": 406.4, "B": 410.7, "alpha": 0.3392, "beta": 0.2849},
        "besiroglu2024": {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
    },
)
