"""Advice for U unique tokens and a compute budget: size, epochs, regularization, and what more would buy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from reptrain.analysis.answer import FitOptions, fit_question
from reptrain.analysis.answers import Fit
from reptrain.analysis.decision import Allocation, Held, best_for_budget
from reptrain.analysis.fit import fit_law
from reptrain.analysis.hints import Hint, hints
from reptrain.analysis.laws import Law, find_law
from reptrain.analysis.points import points_of
from reptrain.analysis.questions import FitQuestion
from reptrain.analysis.tables import main_runs
from reptrain.config.base import Frozen
from reptrain.errors import AnalysisError

DEFAULT_LAW = "excess-saturating"
"""The law that the committed rule of `compare` chooses on the public runs."""
PUBLIC_RUNS = {"N": (7.1e6, 8.67e9), "D": (1e8, 9e11), "U": (1e8, 1.78e11), "epochs": (1.0, 9000.0)}
"""Ranges of the 182 public runs of Muennighoff et al."""
PUBLIC_ERROR = 0.105
"""RMSE in nats of the default law on the 21 largest public runs, fitted on the other 161."""
_BUYS = (("twice the unique tokens", 2.0, 1.0), ("10 times the unique tokens", 10.0, 1.0))
_MORE = (("twice the compute", 1.0, 2.0), ("10 times the compute", 1.0, 10.0))
_SETTINGS_PER_PARAMETER = 2
_PROXY = 16.0
_NEARLY = 1.01
_BUDGETS = 65
_OPPOSITE = (
    "With D fixed the best number of epochs falls as N grows; with D/N fixed it rises slightly (arXiv"
    " 2608.14071)"
)


class Basis(Frozen):
    """What the advice rests on."""

    law: str
    constants: dict[str, float]
    from_runs: list[str]
    """Parameters that are fitted to the user's runs."""
    from_published: list[str]
    """Parameters with the constants of public runs."""
    source: str
    """Where the constants of public runs are from."""
    ranges: dict[str, tuple[float, float]]
    """Smallest and largest value of the runs behind it."""


class Outlook(Frozen):
    """What one more resource would change."""

    change: str
    parameters: float
    epochs: float
    loss_nats: float
    gain_nats: float


class Proxy(Frozen):
    """A small run with the repetition rate of the target."""

    parameters: float
    unique_tokens: float
    tokens: float
    epochs: float


class Advice(Frozen):
    """The best run for unique tokens and compute."""

    unique_tokens: float
    budget_flops: float
    held_fixed: str
    parameters: float
    tokens: float
    epochs: float
    compute_flops: float
    loss_nats: float
    low: dict[str, float]
    """Lower ends of the 95% intervals; `loss_nats` includes the law's own error."""
    high: dict[str, float]
    interval_source: str
    basis: Basis
    second_opinion: dict[str, float] | None
    """The same by the law of Muennighoff et al. with its published constants."""
    extrapolation: dict[str, float]
    """Factors beyond the range of the runs; 1 within it."""
    economical: dict[str, float]
    """The cheapest run whose loss is within 1% of the best."""
    outlook: list[Outlook]
    hints: list[Hint]
    proxy: Proxy


def advise(
    unique_tokens: float,
    compute: float,
    *,
    fit: Fit | None = None,
    samples: int = 0,
    held: Held | None = None,
) -> Advice:
    """Recommend the size and the epochs of a run for a number of unique tokens and a budget.

    Args:
        unique_tokens: Available unique tokens.
        compute: Budget in training FLOPs, 6 N D.
        fit: A fit of the user's runs that includes a decision for this budget. Default: public constants.
        samples: Bootstrap samples behind that decision's interval.
        held: Consumed tokens, or tokens per parameter, to hold fixed. Default: only compute is held fixed.

    Returns:
        The best run with its interval, the sources of the law, and the effect of more data or compute.

    Raises:
        AnalysisError: If a quantity is not positive.
    """
    basis = public_basis() if fit is None else fitted_basis(fit)
    law = find_law(basis.law)
    choice = best_for_budget(law, basis.constants, compute, unique_tokens, held)
    low, high, source = _interval(choice, fit, samples, held)
    return Advice(
        unique_tokens=unique_tokens,
        budget_flops=compute,
        held_fixed=f"{_held_words(held)}. {_OPPOSITE}",
        **choice._asdict(),
        low=low,
        high=high,
        interval_source=source,
        basis=basis,
        second_opinion=_second_opinion(compute, unique_tokens, held),
        extrapolation=_extrapolation(basis, choice, unique_tokens),
        economical=_economical(law, basis.constants, choice, unique_tokens, held)._asdict(),
        outlook=_outlook(law, basis.constants, (compute, unique_tokens), choice, held),
        hints=hints(choice.epochs),
        proxy=Proxy(
            parameters=choice.parameters / _PROXY,
            unique_tokens=unique_tokens / _PROXY,
            tokens=choice.tokens / _PROXY,
            epochs=choice.epochs,
        ),
    )


def _held_words(held: Held | None) -> str:
    if held is None:
        return "compute, 6 N D <= budget: neither D nor D/N"
    if held.what == "tokens":
        return f"D = {held.value:.4g} tokens; the size N is chosen within the budget"
    return f"D/N = {held.value:.4g} tokens per parameter; N is chosen within the budget, and D with it"


def public_basis() -> Basis:
    """The default law with the constants that we fitted to the public runs."""
    law = find_law(DEFAULT_LAW)
    name, constants = next(iter(law.published.items()))
    return Basis(
        law=law.name,
        constants=dict(constants),
        from_runs=[],
        from_published=list(law.names),
        source=f"{name}: our fit of the 182 public runs of Muennighoff et al., 2023 (C4, GPT-2 tokenizer)",
        ranges=dict(PUBLIC_RUNS),
    )


def fitted_basis(fit: Fit) -> Basis:
    """A fit of the user's runs as the basis."""
    fixed = [parameter.name for parameter in fit.parameters if parameter.fixed]
    table: dict[str, list[float]] = {
        name: [residual.variables[name] for residual in fit.residuals] for name in fit.columns
    }
    ranges: dict[str, tuple[float, float]] = {
        name: (min(values), max(values)) for name, values in table.items()
    }
    if {"D", "U"} <= table.keys():
        epochs = [d / u for d, u in zip(table["D"], table["U"], strict=True)]
        ranges["epochs"] = (min(epochs), max(epochs))
    return Basis(
        law=fit.law,
        constants=fit.values,
        from_runs=[parameter.name for parameter in fit.parameters if not parameter.fixed],
        from_published=fixed,
        source="our fit of the 182 public runs of Muennighoff et al., 2023" if fixed else "none",
        ranges=ranges,
    )


class Evidence(NamedTuple):
    """The runs that advice is fitted to.

    Args:
        table: One row per run.
        metric: Column of the loss.
        columns: Columns of N, D and U, where they are not those of a study.
        law: Name of the law.
    """

    table: pa.Table
    metric: str
    columns: Mapping[str, str]
    law: str = DEFAULT_LAW


def fit_evidence(evidence: Evidence, unique_tokens: float, compute: float, options: FitOptions) -> Fit:
    """Fit the user's runs: the whole law, or only its level where they are few.

    With fewer than two settings for each parameter, exponents and scales keep the constants of public runs,
    and only E, the level of the loss, is fitted.

    Raises:
        AnalysisError: If the runs are too few for E, or the law has no constants to fall back on.
    """
    law = find_law(evidence.law)
    points = points_of(main_runs(evidence.table), law, metric=evidence.metric, columns=evidence.columns)
    question = FitQuestion(
        name="advice", law=law.name, metric=evidence.metric, columns=dict(evidence.columns)
    )
    decided = options._replace(budget=(compute, unique_tokens))
    if points.num_settings >= _SETTINGS_PER_PARAMETER * len(law.parameters):
        return fit_question(question, evidence.table, decided)
    if not law.published:
        raise AnalysisError(
            f"runs to fit {law.name}",
            got=f"{points.num_settings} distinct settings",
            rule=f"must be at least {_SETTINGS_PER_PARAMETER * len(law.parameters)}",
            remedy=f"Add runs, or use {DEFAULT_LAW}, which has constants of public runs.",
        )
    constants = next(iter(law.published.values()))
    fixed = {name: value for name, value in constants.items() if name != "E"}
    return fit_law(
        law,
        points,
        fixed=fixed,
        num_starts=options.num_starts,
        num_bootstraps=options.num_bootstraps,
        budget=decided.budget,
        seed=options.seed,
    )


def _interval(
    choice: Allocation, fit: Fit | None, samples: int, held: Held | None
) -> tuple[dict[str, float], dict[str, float], str]:
    # The bootstrap decisions hold only compute fixed.
    if (
        held is None
        and fit is not None
        and fit.decision is not None
        and fit.decision.low
        and fit.decision.high
    ):
        # The law's own error adds to that of its parameters.
        error = 2.0 * fit.score.rmse_nats
        low = {**fit.decision.low, "loss_nats": fit.decision.low["loss_nats"] - error}
        high = {**fit.decision.high, "loss_nats": fit.decision.high["loss_nats"] + error}
        return low, high, f"{samples} bootstrap samples of your runs, plus twice the fit's RMSE for the loss"
    error = PUBLIC_ERROR if fit is None else fit.score.rmse_nats
    source = (
        "twice the law's RMSE on the 21 largest public runs, which were held out"
        if fit is None
        else "twice the fit's RMSE on your runs"
        + (", which are too few for a bootstrap" if held is None else ", without a bootstrap")
    )
    return (
        {"loss_nats": choice.loss_nats - 2.0 * error},
        {"loss_nats": choice.loss_nats + 2.0 * error},
        source,
    )


def _second_opinion(compute: float, unique_tokens: float, held: Held | None) -> dict[str, float]:
    law = find_law("data-constrained")
    return best_for_budget(law, law.published["muennighoff2023"], compute, unique_tokens, held)._asdict()


def _extrapolation(basis: Basis, choice: Allocation, unique_tokens: float) -> dict[str, float]:
    at = {"N": choice.parameters, "D": choice.tokens, "U": unique_tokens, "epochs": choice.epochs}
    return {name: max(1.0, at[name] / high, low / at[name]) for name, (low, high) in basis.ranges.items()}


def _economical(
    law: Law, constants: Mapping[str, float], best: Allocation, unique_tokens: float, held: Held | None
) -> Allocation:
    """The smallest budget that comes within 1% of a loss."""
    for budget in np.geomspace(best.compute_flops / 1e3, best.compute_flops, _BUDGETS):
        choice = best_for_budget(law, constants, float(budget), unique_tokens, held)
        if choice.loss_nats <= _NEARLY * best.loss_nats:
            return choice
    return best


def _outlook(
    law: Law,
    constants: Mapping[str, float],
    budget: tuple[float, float],
    now: Allocation,
    held: Held | None,
) -> list[Outlook]:
    compute, unique_tokens = budget
    result = []
    for change, more_tokens, more_compute in (*_BUYS, *_MORE):
        then = best_for_budget(law, constants, compute * more_compute, unique_tokens * more_tokens, held)
        result.append(
            Outlook(
                change=change,
                parameters=then.parameters,
                epochs=then.epochs,
                loss_nats=then.loss_nats,
                gain_nats=now.loss_nats - then.loss_nats,
            )
        )
    return result


def advice_text(advice: Advice) -> str:
    """Advice for the terminal."""
    basis = advice.basis
    lines = [
        f"{advice.unique_tokens:,.4g} unique tokens, at most {advice.budget_flops:.4g} FLOPs",
        f"  parameters   {_shown(advice, 'parameters', '.3g')}",
        f"  epochs       {_shown(advice, 'epochs', '.3g')}  ({advice.tokens:.3g} tokens)",
        f"  loss         {_shown(advice, 'loss_nats', '.3f')} nats",
        f"  FLOPs        {_shown(advice, 'compute_flops', '.3g')}"
        + (
            ""
            if advice.compute_flops > 0.99 * advice.budget_flops
            else "  (the rest of the budget would not lower the loss)"
        ),
        f"  intervals: {advice.interval_source}",
        "cheapest run within 1% of that loss: {parameters:.3g} parameters, {epochs:.3g} epochs, "
        "{compute_flops:.3g} FLOPs, {loss_nats:.3f} nats".format(**advice.economical),
        "",
        f"held fixed: {advice.held_fixed}",
        f"law: {basis.law}",
        f"  fitted to your runs: {', '.join(basis.from_runs) or 'nothing'}",
        f"  constants of public runs: {', '.join(basis.from_published) or 'none'}"
        + (f" ({basis.source})" if basis.from_published else ""),
        "  extrapolation beyond the runs: "
        + ", ".join(f"{name} x{factor:.3g}" for name, factor in advice.extrapolation.items()),
    ]
    if advice.second_opinion is not None:
        other = advice.second_opinion
        lines.append(
            "  second opinion (Muennighoff et al., published constants): "
            "{parameters:.3g} parameters, {epochs:.3g} epochs, {loss_nats:.3f} nats".format(**other)
        )
    lines += ["", "what more would buy:"]
    lines += [
        f"  {entry.change}: {max(entry.gain_nats, 0.0):.3f} nats lower, {entry.parameters:.3g} parameters, "
        f"{entry.epochs:.3g} epochs"
        for entry in advice.outlook
    ]
    lines += ["", "settings (published results; no law gives them):"]
    lines += [f"  {hint.topic}: {hint.advice}  [{hint.source}]" for hint in advice.hints]
    proxy = advice.proxy
    lines += [
        "",
        f"proxy to tune on: {proxy.parameters:.3g} parameters, {proxy.unique_tokens:.3g} unique tokens, "
        f"{proxy.epochs:.3g} epochs",
        "  It has the target's repetition rate and tokens per parameter. A proxy with the target's tokens "
        "repeats less and misleads (arXiv 2606.07597).",
    ]
    return "\n".join(lines)


def _shown(advice: Advice, name: str, style: str) -> str:
    value = format(getattr(advice, name), style)
    if name not in advice.low:
        return value
    return f"{value} [{advice.low[name]:{style}}, {advice.high[name]:{style}}]"
