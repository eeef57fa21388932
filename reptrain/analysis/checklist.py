"""What a careful reader wants to know of a fit.

Source: Li et al., (Mis)fitting: a survey of scaling laws, 2025 (arXiv 2502.18969).
"""

from __future__ import annotations

from collections.abc import Mapping

from reptrain.analysis.answers import Fit

STATEMENTS = ("tuned", "warm-up", "checkpoints", "parameters", "flops", "optimizer")
"""What a table does not show, and the user may state."""
_MISSING = "not stated; state it with --state"
_OF_COLUMN = {
    "parameters_nonembedding": "parameters without embeddings",
    "parameters_active": "active parameters",
    "parameters_total": "all parameters",
    "consumed_tokens": "consumed tokens",
    "unique_tokens": "unique tokens",
}


def checklist(fit: Fit, stated: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """(item, answer) pairs: conventions, choices of the runs, and choices of the fit.

    Args:
        fit: The fit.
        stated: What the user states about the runs, by the names in `STATEMENTS`.
    """
    said = stated or {}
    variables = [
        f"{name} = column {source}" + (f" ({_OF_COLUMN[source]})" if source in _OF_COLUMN else "")
        for name, source in fit.columns.items()
    ]
    return [
        ("variables", "; ".join(variables)),
        ("parameter convention", said.get("parameters", _parameter_convention(fit))),
        ("FLOP convention", said.get("flops", _flop_convention(fit))),
        ("hyper-parameters tuned for each run", said.get("tuned", _MISSING + " tuned=...")),
        ("warm-up scaled with the run", said.get("warm-up", _MISSING + " warm-up=...")),
        ("optimizer of the runs", said.get("optimizer", _MISSING + " optimizer=...")),
        ("checkpoints", said.get("checkpoints", _checkpoints(fit.metric))),
        ("runs", _runs(fit)),
        ("objective", f"sum of Huber losses of log loss, delta {fit.delta:g}"),
        ("optimizer of the fit", _optimizer(fit)),
        ("local optima within 1% of the best", str(len(fit.optima))),
        ("intervals", _intervals(fit)),
        ("hold-out", _holdout(fit)),
    ]


def _parameter_convention(fit: Fit) -> str:
    source = fit.columns.get("N")
    if source is None:
        return "no N in this law"
    return _OF_COLUMN.get(source, f"{_MISSING} parameters=...")


def _flop_convention(fit: Fit) -> str:
    if not {"N", "D"} <= fit.columns.keys():
        return "none: the law has no N and D"
    return "6 N D with this N; attention scores are not counted"


def _checkpoints(metric: str) -> str:
    if "best" in metric:
        return "one of each run: that with the lowest selection loss"
    if "final" in metric:
        return "one of each run: the last"
    return _MISSING + " checkpoints=..."


def _runs(fit: Fit) -> str:
    text = f"{fit.num_points} runs at {fit.num_settings} settings in {fit.num_clusters} clusters"
    return text + (f"; {fit.left_out} without a loss left out" if fit.left_out else "")


def _optimizer(fit: Fit) -> str:
    if not fit.num_starts:
        return "none: all parameters are fixed"
    fixed = [parameter.name for parameter in fit.parameters if parameter.fixed]
    text = f"L-BFGS (SciPy) from {fit.num_starts} starts, by variable projection"
    return text + (f"; fixed: {', '.join(fixed)}" if fixed else "")


def _intervals(fit: Fit) -> str:
    if fit.num_bootstraps:
        return f"95%, percentiles of {fit.num_bootstraps} bootstrap samples of the clusters"
    refusal = next((w for w in fit.warnings if w.startswith("No intervals: ")), None)
    return "none: no bootstrap" if refusal is None else refusal.replace("No intervals", "none").rstrip(".")


def _holdout(fit: Fit) -> str:
    if fit.holdout is None:
        return "none"
    factors = ", ".join(f"{name} x{factor:.3g}" for name, factor in fit.holdout.extrapolation.items())
    return f"{fit.holdout.num_points} runs, scored once; largest value over the largest fitted: {factors}"
