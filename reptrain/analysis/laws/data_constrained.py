"""Muennighoff's data-constrained law: repeated tokens and excess parameters are worth less and less."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log

import numpy as np

from reptrain.analysis.laws.base import CHINCHILLA, Coordinates, Floats, Law, Logs, Parameter, Term, constant


def saturating(excess: Floats, log_scale: float) -> tuple[Floats, Floats, Floats]:
    """What a relative excess R is worth: s = R* (1 - exp(-R / R*)).

    Args:
        excess: R >= 0.
        log_scale: Logarithm of R*.

    Returns:
        s, its derivative by R, and its derivative by the logarithm of R*.
    """
    scale = exp(log_scale)
    left = np.exp(-excess / scale)
    worth = -scale * np.expm1(-excess / scale)
    return worth, left, worth - left * excess


def effective_data(p: Coordinates, logs: Logs) -> Term:
    """log D', with D' = U (1 + R*_D (1 - exp(-R_D / R*_D))) and R_D = D / U - 1."""
    excess = np.maximum(np.expm1(logs["D"] - logs["U"]), 0.0)
    worth, _, by_scale = saturating(excess, p["R_D"])
    return Term(logs["U"] + np.log1p(worth), {"R_D": by_scale / (1.0 + worth)})


def effective_size(p: Coordinates, logs: Logs) -> Term:
    """log N', with N' = U_N (1 + R*_N (1 - exp(-R_N / R*_N))) and R_N = N / U_N - 1.

    U_N is the number of parameters that is optimal for the unique tokens: min(N, G (U G)^(beta/alpha)), with
    G = (alpha A / (beta B))^(1 / (alpha + beta)).
    """
    alpha, beta = p["alpha"], p["beta"]
    total, ratio = alpha + beta, beta / alpha
    log_g = (log(alpha) + p["A"] - log(beta) - p["B"]) / total
    log_optimal = log_g + ratio * (logs["U"] + log_g)
    log_base = np.minimum(logs["N"], log_optimal)
    excess = np.maximum(np.expm1(logs["N"] - log_base), 0.0)
    worth, left, by_scale = saturating(excess, p["R_N"])
    # Where the model is no larger than optimal, N' = N whatever the parameters.
    by_base = np.where(log_optimal < logs["N"], 1.0 - left * (1.0 + excess) / (1.0 + worth), 0.0)
    by_g = by_base * (1.0 + ratio)
    reach = logs["U"] + log_g
    return Term(
        log_base + np.log1p(worth),
        {
            "A": by_g / total,
            "B": -by_g / total,
            "alpha": by_g * (1.0 / alpha - log_g) / total - by_base * reach * beta / alpha**2,
            "beta": -by_g * (1.0 / beta + log_g) / total + by_base * reach / alpha,
            "R_N": by_scale / (1.0 + worth),
        },
    )


def power_of(name: str, exponent: str, p: Coordinates, base: Term) -> Term:
    """The term A / x^alpha, where x has parameters of its own."""
    gradient = {key: -p[exponent] * np.asarray(value) for key, value in base.gradient.items()}
    gradient[name] = gradient.get(name, np.zeros(())) + 1.0
    gradient[exponent] = gradient.get(exponent, np.zeros(())) - base.log
    return Term(p[name] - p[exponent] * base.log, gradient)


def _terms(p: Coordinates, logs: Logs) -> Sequence[Term]:
    size, data = effective_size(p, logs), effective_data(p, logs)
    return constant("E", p), power_of("A", "alpha", p, size), power_of("B", "beta", p, data)


REPEATS = Parameter(
    "R_D", "repeats after which another one is worth 1/e of a fresh epoch", 0.01, 1e5, (1, 100)
)
EXCESS = Parameter("R_N", "the same for parameters, in multiples of U_N", 0.01, 1e5, (0.5, 50))

LAW = Law(
    name="data-constrained",
    formula=(
        "E + A / N'^alpha + B / D'^beta, D' = U (1 + R_D (1 - exp(-(D/U - 1) / R_D))), "
        "N' = U_N (1 + R_N (1 - exp(-(N/U_N - 1) / R_N))), U_N = min(N, G (U G)^(beta/alpha)), "
        "G = (alpha A / (beta B))^(1 / (alpha + beta))"
    ),
    source="Muennighoff et al., Scaling data-constrained language models, 2023",
    variables=("N", "D", "U"),
    parameters=(*CHINCHILLA, REPEATS, EXCESS),
    terms=_terms,
    scales=(("E",), ("A",), ("B",)),
    published={
        "muennighoff2023": {
            "E": exp(0.6254804),
            "A": exp(6.255414),
            "B": exp(7.3049974),
            "alpha": 0.3526596,
            "beta": 0.3526596,
            "R_D": 15.387756,
            "R_N": 5.309743,
        }
    },
)
