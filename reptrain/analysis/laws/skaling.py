"""Skaling: parameters and data share one exponent beyond their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reptrain.analysis.laws.base import (
    CHINCHILLA,
    Coordinates,
    Law,
    Logs,
    Parameter,
    Term,
    chinchilla_terms,
    log_add,
)


def _terms(p: Coordinates, logs: Logs) -> Sequence[Term]:
    entropy, *falling = chinchilla_terms(p, logs)
    inner = log_add(*falling)
    gradient = {name: p["k"] * np.asarray(value) for name, value in inner.gradient.items()}
    return entropy, Term(p["k"] * inner.log, {**gradient, "k": inner.log})


LAW = Law(
    name="skaling",
    formula="(A / N^alpha + B / D^beta)^k + E",
    source="Skaling (arXiv 2608.07222)",
    variables=("N", "D"),
    parameters=(
        *CHINCHILLA,
        Parameter("k", "exponent of the sum", 0.05, 5.0, (0.3, 1.5), log=False),
    ),
    terms=_terms,
    scales=(("E",), ("A", "B")),
    scale_power="k",
)
