"""A bounded law: the loss never exceeds that of an untrained model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reptrain.analysis.laws.base import (
    ALPHA,
    BETA,
    ENTROPY,
    Coordinates,
    Law,
    Logs,
    Parameter,
    Term,
    decay,
    log_add,
)


def _terms(p: Coordinates, logs: Logs) -> Sequence[Term]:
    overfit = p["c"] + p["gamma"] * logs["N"] - p["delta"] * logs["U"]
    h = log_add(
        decay("a", "alpha", p, logs["N"]),
        decay("b", "beta", p, logs["D"]),
        Term(overfit, {"c": 1.0, "gamma": logs["N"], "delta": -logs["U"]}),
    )
    log_one = np.logaddexp(0.0, h.log)
    high = np.exp(h.log - log_one)
    low = {name: -high * value for name, value in h.gradient.items()}
    rest = {name: (1.0 - high) * value for name, value in h.gradient.items()}
    return Term(p["E"] - log_one, {"E": 1.0, **low}), Term(p["L0"] + h.log - log_one, {"L0": 1.0, **rest})


LAW = Law(
    name="bounded",
    formula="E + (L0 - E) h / (1 + h), h = a / N^alpha + b / D^beta + c N^gamma / U^delta",
    source="form: arXiv 2605.09189; constants: fitted, none published",
    variables=("N", "D", "U"),
    parameters=(
        ENTROPY,
        Parameter("L0", "loss of an untrained model (nats)", 1e-2, 30.0, (5.0, 12.0)),
        Parameter("a", "scale of the term of N", 1e-6, 1e12, (1.0, 1e4)),
        Parameter("b", "scale of the term of D", 1e-6, 1e14, (1.0, 1e5)),
        ALPHA,
        BETA,
        Parameter("c", "scale of the term of overfitting", 1e-12, 1e12, (1e-2, 1e4)),
        Parameter("gamma", "exponent of N in overfitting", 0.01, 3.0, (0.1, 1.0), log=False),
        Parameter("delta", "exponent of U in overfitting", 0.01, 3.0, (0.1, 1.0), log=False),
    ),
    terms=_terms,
    scales=(("E",), ("L0",)),
)
