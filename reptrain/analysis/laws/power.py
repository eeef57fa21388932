"""Power laws in one variable."""

from __future__ import annotations

from collections.abc import Sequence

from reptrain.analysis.laws.base import ENTROPY, Coordinates, Law, Logs, Parameter, Term, constant, decay


def _pure(p: Coordinates, logs: Logs) -> Sequence[Term]:
    return (decay("A", "alpha", p, logs["x"]),)


def _with_constant(p: Coordinates, logs: Logs) -> Sequence[Term]:
    return constant("E", p), decay("A", "alpha", p, logs["x"])


_SCALE = Parameter("A", "value at x = 1", 1e-12, 1e18, (1e-2, 1e6))
_SOURCE = "Kaplan et al., Scaling laws for neural language models, 2020"

PURE = Law(
    name="power",
    formula="A / x^alpha",
    source=_SOURCE,
    variables=("x",),
    # The loss may rise with x, for example with the number of epochs.
    parameters=(_SCALE, Parameter("alpha", "exponent of x", -3.0, 3.0, (-0.5, 1.0), log=False)),
    terms=_pure,
    scales=(("A",),),
)
WITH_CONSTANT = Law(
    name="power-constant",
    formula="E + A / x^alpha",
    source=_SOURCE,
    variables=("x",),
    parameters=(ENTROPY, _SCALE, Parameter("alpha", "exponent of x", 0.01, 3.0, (0.05, 1.5), log=False)),
    terms=_with_constant,
    scales=(("E",), ("A",)),
)
