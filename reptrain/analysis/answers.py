"""What a fit answers, as typed records that the report draws and `--json` prints."""

from __future__ import annotations

from reptrain.config.base import Frozen


class FittedParameter(Frozen):
    """A parameter with its 95% interval."""

    name: str
    meaning: str
    value: float
    low: float | None
    """Lower end of the interval; None without a bootstrap, or for a fixed parameter."""
    high: float | None
    fixed: bool
    at_bound: bool
    """The value is a bound of the search: the runs give only a direction."""


class LocalMinimum(Frozen):
    """A local minimum of the objective."""

    objective: float
    reached_from: int
    """Number of starts that lead to it."""
    values: dict[str, float]


class FitScore(Frozen):
    """How well a law describes runs."""

    objective: float
    """Sum of Huber losses of log loss."""
    r2_loss: float | None
    """1 - squared errors of the loss / squares around its mean. None if all losses are equal."""
    r2_log_loss: float | None
    """The same for log loss."""
    rmse_nats: float
    rmse_log: float
    aicc: float | None
    """Corrected AIC with Gaussian errors of log loss. None for a hold-out, or with too few runs."""


class Residual(Frozen):
    """A run and what the law predicts for it."""

    run: str
    variables: dict[str, float]
    loss: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted minus measured loss, in nats."""
        return self.predicted - self.loss


class HoldoutScore(Frozen):
    """The score on runs that were not fitted."""

    num_points: int
    runs: list[str]
    score: FitScore
    extrapolation: dict[str, float]
    """Largest value of each variable in the hold-out over the largest fitted one."""
    residuals: list[Residual]


class BudgetAllocation(Frozen):
    """The best size and number of epochs within a budget of 6 N D FLOPs."""

    budget_flops: float
    unique_tokens: float
    parameters: float
    tokens: float
    epochs: float
    loss_nats: float
    compute_flops: float
    """What is best to spend; less than the budget where repeats hurt."""
    low: dict[str, float] | None
    """Lower ends of the 95% intervals."""
    high: dict[str, float] | None
    extrapolation: float
    """The budget over the largest fitted run's 6 N D."""


class Fit(Frozen):
    """A law fitted to runs."""

    law: str
    formula: str
    source: str
    columns: dict[str, str]
    metric: str
    num_points: int
    num_settings: int
    num_clusters: int
    left_out: int
    parameters: list[FittedParameter]
    delta: float
    num_starts: int
    num_bootstraps: int
    optima: list[LocalMinimum]
    score: FitScore
    residuals: list[Residual]
    holdout: HoldoutScore | None
    decision: BudgetAllocation | None
    seed_deviation_nats: float | None
    """Pooled standard deviation of runs with equal settings."""
    warnings: list[str]

    @property
    def values(self) -> dict[str, float]:
        """Parameter values by name."""
        return {parameter.name: parameter.value for parameter in self.parameters}


class FitCurve(Frozen):
    """A line of the law to draw through its points."""

    label: str
    variable: str
    """The variable on the horizontal axis."""
    x: list[float]
    loss: list[float]


class FitAnswer(Frozen):
    """The answer to a question of the form `FitQuestion`."""

    name: str
    law: str
    fit: Fit | None
    """None if the fit was refused."""
    refusal: str | None
    """Why there is no fit."""
    curves: list[FitCurve]
    checklist: list[tuple[str, str]]


class LawScore(Frozen):
    """A law's errors in cross-validation."""

    law: str
    fold_rmse_log: list[float]
    """Root mean square error of log loss, by fold."""
    mean_rmse_log: float


class Comparison(Frozen):
    """Laws compared by cross-validation that extrapolates."""

    scores: list[LawScore]
    """The best first."""
    refused: dict[str, str]
    """Laws that could not be compared, and why."""
    chosen: str | None
