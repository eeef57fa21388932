"""Laws in which excess epochs and parameters hurt: Chinchilla's law plus a penalty.

The penalty is P R^delta (N / U)^kappa with R = D / U - 1, zero at one epoch. In `excess-saturating` it is
P (1 - exp(-R / R_P)) (N / U)^kappa: repeats hurt up to a limit, which grows with the parameters per unique
token. We fit the constants; none is published.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reptrain.analysis.laws.base import (
    CHINCHILLA,
    Coordinates,
    Floats,
    Law,
    Logs,
    Parameter,
    Term,
    chinchilla_terms,
    constant,
    decay,
)
from reptrain.analysis.laws.data_constrained import REPEATS, effective_data, power_of

_SOURCE = "form: Lovelace, 2026 (arXiv 2605.01640); constants: fitted, none published"
# Small enough that R^delta vanishes at one epoch for every delta within bounds.
_NO_REPEAT = 1e-200


def _log_repeats(logs: Logs) -> Floats:
    """log R, with R = D / U - 1."""
    return np.asarray(np.log(np.maximum(np.expm1(logs["D"] - logs["U"]), _NO_REPEAT)))


def _one(p: Coordinates, logs: Logs) -> Sequence[Term]:
    return *chinchilla_terms(p, logs), Term(p["P"] + _log_repeats(logs) + logs["N"] - logs["U"], {"P": 1.0})


def _two(p: Coordinates, logs: Logs) -> Sequence[Term]:
    product = _log_repeats(logs) + logs["N"] - logs["U"]
    return *chinchilla_terms(p, logs), Term(p["P"] + p["delta"] * product, {"P": 1.0, "delta": product})


def _penalty(p: Coordinates, logs: Logs) -> Term:
    repeats, ratio = _log_repeats(logs), logs["N"] - logs["U"]
    value = p["P"] + p["delta"] * repeats + p["kappa"] * ratio
    return Term(value, {"P": 1.0, "delta": repeats, "kappa": ratio})


def _four(p: Coordinates, logs: Logs) -> Sequence[Term]:
    size = decay("A", "alpha", p, logs["N"])
    data = power_of("B", "beta", p, effective_data(p, logs))
    return constant("E", p), size, data, _penalty(p, logs)


def _saturating(p: Coordinates, logs: Logs) -> Sequence[Term]:
    scaled = np.exp(_log_repeats(logs) - p["R_P"])
    reached = np.maximum(-np.expm1(-scaled), _NO_REPEAT)
    ratio = logs["N"] - logs["U"]
    by_scale = -scaled * np.exp(-scaled) / reached
    value = p["P"] + np.log(reached) + p["kappa"] * ratio
    return *chinchilla_terms(p, logs), Term(value, {"P": 1.0, "R_P": by_scale, "kappa": ratio})


PENALTY = Parameter("P", "penalty at R = 1 and N = U (nats)", 1e-12, 1e6, (1e-4, 1.0))
DELTA = Parameter("delta", "exponent of the repeats R", 0.1, 5.0, (0.3, 2.0), log=False)
KAPPA = Parameter("kappa", "exponent of the parameters per unique token", 0.01, 5.0, (0.2, 2.0), log=False)
_SCALES = (("E",), ("A",), ("B",), ("P",))

ONE = Law(
    name="excess-1",
    formula="E + A / N^alpha + B / D^beta + P (D/U - 1) N/U",
    source=_SOURCE,
    variables=("N", "D", "U"),
    parameters=(*CHINCHILLA, PENALTY),
    terms=_one,
    scales=_SCALES,
)
TWO = Law(
    name="excess-2",
    formula="E + A / N^alpha + B / D^beta + P ((D/U - 1) N/U)^delta",
    source=_SOURCE,
    variables=("N", "D", "U"),
    parameters=(*CHINCHILLA, PENALTY, DELTA),
    terms=_two,
    scales=_SCALES,
)
FOUR = Law(
    name="excess-4",
    formula=(
        "E + A / N^alpha + B / D'^beta + P (D/U - 1)^delta (N/U)^kappa, "
        "D' = U (1 + R_D (1 - exp(-(D/U - 1) / R_D)))"
    ),
    source=_SOURCE,
    variables=("N", "D", "U"),
    parameters=(*CHINCHILLA, PENALTY, DELTA, KAPPA, REPEATS),
    terms=_four,
    scales=_SCALES,
)
SATURATING = Law(
    name="excess-saturating",
    formula="E + A / N^alpha + B / D^beta + P (1 - exp(-(D/U - 1) / R_P)) (N/U)^kappa",
    source="form and constants: fitted, none published",
    variables=("N", "D", "U"),
    parameters=(
        *CHINCHILLA,
        Parameter("P", "largest penalty at N = U (nats)", 1e-12, 1e6, (1e-3, 10.0)),
        KAPPA,
        Parameter(
            "R_P", "epochs after the first by which 63% of the penalty is reached", 0.01, 1e5, (1, 300)
        ),
    ),
    terms=_saturating,
    scales=_SCALES,
    # reptrain fit on the 182 runs that Muennighoff et al. (2023) fitted.
    published={
        "public-182": {
            "E": 2.13282,
            "A": 1087.63,
            "B": 19215.6,
            "alpha": 0.384475,
            "beta": 0.462899,
            "P": 0.604867,
            "kappa": 0.914688,
            "R_P": 135.564,
        }
    },
)
