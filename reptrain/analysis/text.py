"""Fits and comparisons as plain text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reptrain.analysis.answers import BudgetAllocation, Comparison, Fit, FitAnswer, FitScore


def laws_text(answers: Sequence[FitAnswer], comparison: Comparison | None) -> str:
    """All fits, and how the laws compare."""
    parts = [_answer_text(answer) for answer in answers]
    if comparison is not None:
        parts.append(comparison_text(comparison, [a.fit for a in answers if a.fit is not None]))
    return "\n\n\n".join(parts)


def _answer_text(answer: FitAnswer) -> str:
    # A fit of a study has its own name.
    heading = f"{answer.name}: " if answer.name != answer.law else ""
    if answer.fit is None:
        return f"{heading}{answer.law}: not fitted. {answer.refusal}"
    return heading + fit_text(answer.fit, answer.checklist)


def fit_text(fit: Fit, checklist: Sequence[tuple[str, str]]) -> str:
    """A fit for the terminal."""
    parts = [
        [f"{fit.law}: loss = {fit.formula}", f"source: {fit.source}"],
        _parameters(fit),
        _score("fitted runs", fit.num_points, fit.score),
    ]
    if fit.holdout is not None:
        parts[-1] += _score("hold-out", fit.holdout.num_points, fit.holdout.score)
    if fit.seed_deviation_nats is not None:
        parts[-1].append(f"standard deviation between seeds: {fit.seed_deviation_nats:.4g} nats")
    if len(fit.optima) > 1:
        parts.append(_optima(fit))
    parts.append(_trends(fit))
    parts.append(_worst(fit))
    if fit.decision is not None:
        parts.append(_decision(fit.decision))
    parts.append(["checklist:", *(f"  {item}: {answer}" for item, answer in checklist)])
    if fit.warnings:
        parts.append([f"WARNING: {warning}" for warning in fit.warnings])
    return "\n\n".join("\n".join(part) for part in parts)


def _parameters(fit: Fit) -> list[str]:
    lines = ["parameters:"]
    for p in fit.parameters:
        line = f"  {p.name:<6} {p.value:.6g}"
        if p.fixed:
            line += "  fixed"
        elif p.low is not None and p.high is not None:
            line += f"  [{p.low:.4g}, {p.high:.4g}]"
        lines.append(f"{line}  {'(at its bound) ' if p.at_bound else ''}{p.meaning}")
    return lines


def _score(label: str, num: int, score: FitScore) -> list[str]:
    r2 = "undefined" if score.r2_loss is None else f"{score.r2_loss:.5f}"
    r2_log = "undefined" if score.r2_log_loss is None else f"{score.r2_log_loss:.5f}"
    aicc = "" if score.aicc is None else f", AICc {score.aicc:.1f}"
    return [
        f"{label} ({num}): objective {score.objective:.7g}, R^2 of the loss {r2}, of log loss {r2_log}, "
        f"RMSE {score.rmse_nats:.4g} nats{aicc}"
    ]


def _optima(fit: Fit) -> list[str]:
    free = [parameter.name for parameter in fit.parameters if not parameter.fixed]
    lines = ["local optima within 1% of the best:"]
    for optimum in fit.optima:
        values = ", ".join(f"{name} = {optimum.values[name]:.6g}" for name in free)
        lines.append(f"  objective {optimum.objective:.9f} from {optimum.reached_from} starts: {values}")
    return lines


def _trends(fit: Fit) -> list[str]:
    """Mean residual in each third of N, D and D / N; a trend shows what the law misses."""
    errors = np.array([residual.error for residual in fit.residuals])
    axes = {name: np.array([r.variables[name] for r in fit.residuals]) for name in fit.columns}
    if {"N", "D"} <= axes.keys():
        axes["D/N"] = axes["D"] / axes["N"]
    lines = ["mean residual (nats) in the lowest, middle and highest third of:"]
    for name, values in axes.items():
        thirds = np.array_split(errors[np.argsort(values, kind="stable")], 3)
        shown = "  ".join("-" if not len(third) else f"{third.mean():+.4f}" for third in thirds)
        lines.append(f"  {name:<4} {shown}")
    return lines


def _worst(fit: Fit) -> list[str]:
    worst = sorted(fit.residuals, key=lambda residual: -abs(residual.error))[:5]
    lines = ["largest residuals (predicted - measured, nats):"]
    for residual in worst:
        at = ", ".join(f"{name} = {value:.4g}" for name, value in residual.variables.items())
        lines.append(f"  {residual.run}: {residual.error:+.4f} at {at}, loss {residual.loss:.4f}")
    return lines


def _decision(decision: BudgetAllocation) -> list[str]:
    def shown(name: str, style: str) -> str:
        text = format(getattr(decision, name), style)
        if decision.low is None or decision.high is None:
            return text
        return f"{text} [{decision.low[name]:{style}}, {decision.high[name]:{style}}]"

    return [
        f"best within {decision.budget_flops:.4g} FLOPs and {decision.unique_tokens:.4g} unique tokens "
        "(compute is held fixed):",
        f"  parameters {shown('parameters', '.4g')}",
        f"  epochs {shown('epochs', '.4g')}",
        f"  loss {shown('loss_nats', '.4g')} nats",
        f"  FLOPs to spend {shown('compute_flops', '.4g')}",
        f"  extrapolation: the budget is {decision.extrapolation:.3g} times the largest fitted run",
    ]


def comparison_text(comparison: Comparison, fits: Sequence[Fit]) -> str:
    """Laws side by side."""
    by_name = {fit.law: fit for fit in fits}
    lines = [
        "laws, by cross-validation on the largest N and D (RMSE of log loss; lower is better):",
        f"  {'law':<18} {'CV':>8} {'AICc':>9} {'hold-out R^2':>13} {'free':>5}",
    ]
    for entry in comparison.scores:
        fit = by_name.get(entry.law)
        aicc = "-" if fit is None or fit.score.aicc is None else f"{fit.score.aicc:.1f}"
        held = None if fit is None or fit.holdout is None else fit.holdout.score.r2_loss
        free = "-" if fit is None else str(sum(not parameter.fixed for parameter in fit.parameters))
        shown = "-" if held is None else f"{held:.4f}"
        lines.append(f"  {entry.law:<18} {entry.mean_rmse_log:>8.4f} {aicc:>9} {shown:>13} {free:>5}")
    lines += [f"  {law}: not compared: {reason}" for law, reason in comparison.refused.items()]
    if comparison.chosen is not None:
        lines.append(f"chosen: {comparison.chosen} (the hold-out is not used)")
    return "\n".join(lines)


def short_count(value: float, position: int | None = None) -> str:
    """``250000`` as ``250k``, ``1500000`` as ``1.5M``."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"
