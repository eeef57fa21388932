"""Chinchilla's law with a term of the unique tokens, and the same with a penalty for excess repeats."""

from __future__ import annotations

from collections.abc import Sequence

from reptrain.analysis.laws.base import (
    CHINCHILLA,
    Coordinates,
    Law,
    Logs,
    Parameter,
    Term,
    chinchilla_terms,
    decay,
)


def _terms(p: Coordinates, logs: Logs) -> Sequence[Term]:
    return *chinchilla_terms(p, logs), decay("C", "gamma", p, logs["U"])


UNIQUE = Parameter("C", "scale of the term of U", 1e-6, 1e14, (1e-2, 1e3))
GAMMA = Parameter("gamma", "exponent of U", 0.01, 3.0, (0.05, 0.8), log=False)

LAW = Law(
    name="unique-term",
    formula="E + A / N^alpha + B / D^beta + C / U^gamma",
    source="form: the best entry of a public benchmark (github.com/PlanarG/active-sl); constants: fitted",
    variables=("N", "D", "U"),
    parameters=(*CHINCHILLA, UNIQUE, GAMMA),
    terms=_terms,
    scales=(("E",), ("A",), ("B",), ("C",)),
)
