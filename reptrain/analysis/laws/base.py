"""What a law is: terms that add up to a loss, their parameters, and the gradient of each term.

A law is a sum of positive terms, loss = sum_j exp(t_j). Fits work with log loss by log-sum-exp, as
Hoffmann et al. (2022) do, and scale the terms by non-negative least squares to find starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Coordinates = Mapping[str, float]
"""Parameters by name, as the fit moves them: the logarithm of a parameter with `log`, else its value."""
Logs = Mapping[str, Floats]
"""The logarithm of each variable, float64, shape (points,)."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a law.

    Args:
        name: Its name in the formula.
        meaning: What it stands for, with the unit.
        lower: Smallest value.
        upper: Largest value.
        starts: Range from which starts are drawn.
        log: Fit and draw its logarithm. Its values are positive.
    """

    name: str
    meaning: str
    lower: float
    upper: float
    starts: tuple[float, float]
    log: bool = True

    def coordinate(self, value: float) -> float:
        """The value as the fit moves it."""
        return float(np.log(value)) if self.log else float(value)

    def value(self, coordinate: float) -> float:
        """The inverse of `coordinate`."""
        return float(np.exp(coordinate)) if self.log else float(coordinate)


@dataclass(frozen=True)
class Term:
    """One term of a law at every point.

    Args:
        log: Logarithm of the term, shape (points,) or a number.
        gradient: Its derivatives by the coordinates of parameters, by name; those left out are zero.
    """

    log: Floats | float
    gradient: Mapping[str, Floats | float]


@dataclass(frozen=True)
class Law:
    """A law: loss as a function of a few variables, with parameters to fit.

    Args:
        name: Its name in the registry.
        formula: The formula, in plain text.
        source: Publication, or who fitted the constants.
        variables: Names of the variables: N (parameters), D (consumed tokens), U (unique tokens), or x.
        parameters: The parameters, in the order of the coordinates.
        terms: Function from coordinates and variables to the terms.
        scales: For each term the parameter that scales it, and the exponent of the scale in it. A term may
            have several.
        published: Constants fitted to public runs, by the name of the set.
    """

    name: str
    formula: str
    source: str
    variables: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    terms: Callable[[Coordinates, Logs], Sequence[Term]] = field(repr=False)
    scales: tuple[tuple[str, ...], ...]
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    scale_power: str | None = None
    """Parameter k of a term (…)^k: its factors are scaled by the k-th root."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(parameter.name for parameter in self.parameters)

    def coordinates(self, values: Mapping[str, float]) -> Floats:
        """Coordinates of these parameter values, shape (parameters,)."""
        return np.array([p.coordinate(values[p.name]) for p in self.parameters])

    def values(self, theta: Floats) -> dict[str, float]:
        """Parameter values at these coordinates."""
        return {p.name: p.value(float(t)) for p, t in zip(self.parameters, theta, strict=True)}

    def log_terms(self, theta: Floats, logs: Logs) -> tuple[Floats, Floats]:
        """All terms and their derivatives.

        Args:
            theta: Coordinates, shape (parameters,).
            logs: Logarithms of the variables, shape (points,).

        Returns:
            Logarithms of the terms, shape (terms, points), and their derivatives, shape (terms, parameters,
            points).
        """
        coordinates = dict(zip(self.names, theta.tolist(), strict=True))
        terms = self.terms(coordinates, logs)
        num_points = len(logs[self.variables[0]])
        values = np.empty((len(terms), num_points))
        gradients = np.zeros((len(terms), len(self.parameters), num_points))
        at = {name: place for place, name in enumerate(self.names)}
        for row, term in enumerate(terms):
            values[row] = term.log
            for name, derivative in term.gradient.items():
                gradients[row, at[name]] = derivative
        return values, gradients

    def log_loss(self, theta: Floats, logs: Logs) -> tuple[Floats, Floats]:
        """Logarithm of the loss, shape (points,), and its derivatives, shape (parameters, points)."""
        terms, gradients = self.log_terms(theta, logs)
        largest = terms.max(axis=0)
        shares = np.exp(terms - largest)
        total = shares.sum(axis=0)
        shares /= total
        return largest + np.log(total), np.einsum("jn,jpn->pn", shares, gradients)

    def loss(self, values: Mapping[str, float], variables: Mapping[str, Floats | float]) -> Floats:
        """The loss in nats.

        Args:
            values: Parameter values by name.
            variables: Variables by name, positive; arrays broadcast.

        Returns:
            float64, in the variables' common shape.
        """
        arrays = np.broadcast_arrays(*(np.asarray(variables[name], np.float64) for name in self.variables))
        shape = arrays[0].shape
        logs = {name: np.log(a).ravel() for name, a in zip(self.variables, arrays, strict=True)}
        log_loss, _ = self.log_loss(self.coordinates(values), logs)
        return np.exp(log_loss).reshape(shape)

    def scaled(self, theta: Floats, log_scales: Floats) -> Floats:
        """Coordinates with which each term is multiplied by exp(log_scales)."""
        result, at = theta.copy(), {name: place for place, name in enumerate(self.names)}
        for names, scale in zip(self.scales, log_scales, strict=True):
            power = theta[at[self.scale_power]] if self.scale_power and len(names) > 1 else 1.0
            for name in names:
                result[at[name]] += scale / power
        return result


def constant(name: str, p: Coordinates) -> Term:
    """A constant term."""
    return Term(p[name], {name: 1.0})


def decay(name: str, exponent: str, p: Coordinates, log_variable: Floats) -> Term:
    """The term A / x^alpha."""
    return Term(p[name] - p[exponent] * log_variable, {name: 1.0, exponent: -log_variable})


def chinchilla_terms(p: Coordinates, logs: Logs) -> tuple[Term, Term, Term]:
    """The terms E, A / N^alpha and B / D^beta, of the parameters `CHINCHILLA`."""
    return constant("E", p), decay("A", "alpha", p, logs["N"]), decay("B", "beta", p, logs["D"])


def log_add(*terms: Term) -> Term:
    """The logarithm of a sum of terms, as one term."""
    total = np.logaddexp.reduce([np.asarray(term.log) + 0.0 for term in terms])
    gradient: dict[str, Floats | float] = {}
    for term in terms:
        share = np.exp(term.log - total)
        for name, derivative in term.gradient.items():
            gradient[name] = gradient.get(name, 0.0) + share * derivative
    return Term(total, gradient)


ENTROPY = Parameter("E", "loss that neither parameters nor data remove (nats)", 1e-4, 20.0, (0.3, 3.0))
SIZE = Parameter("A", "scale of the term of N", 1e-6, 1e12, (1.0, 1e4))
DATA = Parameter("B", "scale of the term of D", 1e-6, 1e14, (1.0, 1e5))
ALPHA = Parameter("alpha", "exponent of N", 0.01, 3.0, (0.1, 0.8), log=False)
BETA = Parameter("beta", "exponent of D", 0.01, 3.0, (0.1, 0.8), log=False)
CHINCHILLA = (ENTROPY, SIZE, DATA, ALPHA, BETA)
"""The parameters of Chinchilla's law, which others extend."""
