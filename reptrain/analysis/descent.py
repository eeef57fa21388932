"""The minimum of a law's Huber loss: starts by variable projection, then L-BFGS.

Source: Hoffmann et al. (2022) for the Huber loss on log loss; Besiroglu et al. (2024) for the sum over runs,
where a mean stops L-BFGS early.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls
from scipy.stats import qmc

from reptrain.analysis.laws.base import Floats, Law, Logs

DELTA = 1e-3
"""Where the Huber loss turns from a square to a straight line, in units of log loss."""
_CANDIDATES_PER_START = 4
_ROUNDS = 6
_STEPS_PER_ROUND = 200
_ENOUGH = 1e-8
_WALL = 1e3


@dataclass(frozen=True)
class FitProblem:
    """A law, the points it is fitted to, and the parameters that keep a given value.

    Args:
        law: The law.
        logs: Logarithms of the variables, shape (points,).
        log_loss: Logarithm of the measured loss, shape (points,).
        fixed: Values of the parameters that are not fitted.
    """

    law: Law
    logs: Logs
    log_loss: Floats
    fixed: Mapping[str, float]

    @cached_property
    def free(self) -> NDArray[np.bool_]:
        """Which parameters are fitted."""
        return np.array([name not in self.fixed for name in self.law.names])

    @cached_property
    def bounds(self) -> tuple[Floats, Floats]:
        """Smallest and largest coordinates."""
        parameters = self.law.parameters
        low = np.array([p.coordinate(p.lower) for p in parameters])
        high = np.array([p.coordinate(p.upper) for p in parameters])
        return low, high

    def at(self, keep: NDArray[np.bool_]) -> FitProblem:
        """The same problem on a part of the points."""
        logs = {name: values[keep] for name, values in self.logs.items()}
        return FitProblem(self.law, logs, self.log_loss[keep], self.fixed)

    def residuals(self, theta: Floats) -> tuple[Floats, Floats]:
        """Predicted minus measured log loss, shape (points,), and its derivatives by the free coordinates."""
        predicted, gradient = self.law.log_loss(theta, self.logs)
        return predicted - self.log_loss, gradient[self.free]

    def objective(self, theta: Floats, weights: Floats | float = 1.0) -> float:
        """The sum of the points' Huber losses."""
        residuals, _ = self.residuals(theta)
        return float(np.sum(weights * huber(residuals)))


def huber(residuals: Floats, delta: float = DELTA) -> Floats:
    """Huber loss: r^2 / 2 up to delta, delta (|r| - delta / 2) beyond."""
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def starts(problem: FitProblem, count: int, seed: int) -> list[Floats]:
    """Coordinates to start from.

    Exponents and scales come from a Sobol sequence; then the scale of each term is solved for by non-negative
    least squares (variable projection), and the candidates with the smallest objective are kept.

    Args:
        problem: The law and its points.
        count: Number of starts.
        seed: Seed of the sequence.
    """
    parameters = problem.law.parameters
    fixed = {p.name: p.coordinate(problem.fixed[p.name]) for p in parameters if p.name in problem.fixed}
    low = np.array([fixed.get(p.name, p.coordinate(p.starts[0])) for p in parameters])
    high = np.array([fixed.get(p.name, p.coordinate(p.starts[1])) for p in parameters])
    exponent = max(0, int(np.ceil(np.log2(count * _CANDIDATES_PER_START))))
    unit = qmc.Sobol(len(parameters), seed=np.random.default_rng(seed)).random_base2(exponent)
    candidates = [_project(problem, theta) for theta in low + unit * (high - low)]
    order = np.argsort([problem.objective(theta) for theta in candidates], kind="stable")
    return [candidates[place] for place in order[:count]]


def _project(problem: FitProblem, theta: Floats) -> Floats:
    """Replace the scales of the terms by their best values, all else equal."""
    terms, _ = problem.law.log_terms(theta, problem.logs)
    relative = terms - problem.log_loss
    peaks = relative.max(axis=1)
    factors, _ = nnls(np.exp(relative - peaks[:, None]).T, np.ones(len(problem.log_loss)))
    # A term that least squares removes starts small, so that descent can bring it back.
    moved = problem.law.scaled(theta, np.log(np.maximum(factors, 1e-4)) - peaks)
    low, high = problem.bounds
    return np.where(problem.free, np.clip(moved, low, high), theta)


def descend(
    problem: FitProblem, theta: Floats, weights: Floats | float = 1.0, rounds: int = _ROUNDS
) -> Floats:
    """The local minimum below a start.

    L-BFGS runs in coordinates that are scaled by the curvature at the start of each round: the raw ones are
    badly conditioned.

    Args:
        problem: The law and its points.
        theta: Coordinates of the start, shape (parameters,).
        weights: Weight of each point.
        rounds: Largest number of rounds.
    """
    if not problem.free.any():
        return theta
    best, value = theta, problem.objective(theta, weights)
    for _ in range(rounds):
        moved = _round(problem, best, weights)
        lower = problem.objective(moved, weights)
        if not lower < value:
            break
        done = value - lower <= _ENOUGH * value
        best, value = moved, lower
        if done:
            break
    return best


def _round(problem: FitProblem, theta: Floats, weights: Floats | float) -> Floats:
    residuals, gradient = problem.residuals(theta)
    curvature = weights * np.minimum(1.0, DELTA / np.maximum(np.abs(residuals), 1e-300))
    sizes, axes = np.linalg.eigh((gradient * curvature) @ gradient.T)
    scale = axes * np.sqrt(DELTA / (np.maximum(sizes, 0.0) + 1e-9 * sizes[-1] + 1e-30))
    low, high = (bound[problem.free] for bound in problem.bounds)
    origin, full = theta[problem.free], theta.copy()

    def value(z: Floats) -> tuple[float, Floats]:
        moved = origin + scale @ z
        inside = np.clip(moved, low, high)
        beyond = moved - inside
        full[problem.free] = inside
        residuals, gradient = problem.residuals(full)
        slopes = weights * np.clip(residuals / DELTA, -1.0, 1.0)
        loss = float(np.sum(weights * huber(residuals))) / DELTA + _WALL * float(beyond @ beyond)
        towards = np.einsum("pn,n->p", gradient, slopes) * (beyond == 0.0) + 2.0 * _WALL * beyond
        return loss, scale.T @ towards

    options = {"maxcor": 20, "maxiter": _STEPS_PER_ROUND, "ftol": 1e-13, "gtol": 1e-9}
    with np.errstate(over="ignore", invalid="ignore"):
        found = minimize(value, np.zeros(len(origin)), jac=True, method="L-BFGS-B", options=options)
    result = theta.copy()
    result[problem.free] = np.clip(origin + scale @ found.x, low, high)
    return result
