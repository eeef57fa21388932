"""The answer to a study's question of the form "which law do these runs follow?"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from reptrain.analysis.answers import Comparison, Fit, FitAnswer, FitCurve
from reptrain.analysis.checklist import checklist
from reptrain.analysis.compare import CV_STARTS, compare
from reptrain.analysis.fit import NUM_STARTS, fit_law
from reptrain.analysis.laws import Law, find_law
from reptrain.analysis.laws.base import Floats
from reptrain.analysis.points import Points, held_out, points_of
from reptrain.analysis.questions import FitQuestion
from reptrain.analysis.tables import ROLE, main_runs, select
from reptrain.analysis.text import short_count
from reptrain.errors import AnalysisError, ConfigError

NUM_BOOTSTRAPS = 200
"""Bootstrap samples, unless another number is given."""
_MOST_CURVES = 8
_CURVE_POINTS = 60


class FitOptions(NamedTuple):
    """How laws are fitted.

    Args:
        fixed: Values of parameters that are not fitted.
        own_starts: Starts by parameter name.
        num_starts: Number of starts by variable projection.
        num_bootstraps: Number of bootstrap samples.
        cluster: Column of the units that are resampled.
        budget: Training FLOPs and unique tokens to decide for.
        seed: Seed of starts and bootstrap.
    """

    fixed: Mapping[str, float] | None = None
    own_starts: tuple[Mapping[str, float], ...] = ()
    num_starts: int = NUM_STARTS
    num_bootstraps: int = NUM_BOOTSTRAPS
    cluster: str | None = None
    budget: tuple[float, float] | None = None
    seed: int = 0


def fit_question(question: FitQuestion, table: pa.Table, options: FitOptions | None = None) -> Fit:
    """Fit a question's law to the runs that it names.

    Raises:
        AnalysisError: If the table lacks a column, or the fit is refused.
        ConfigError: If there is no such law.
    """
    chosen = options or FitOptions()
    law = find_law(question.law)
    points = question_points(question, table, law, chosen.cluster)
    unseen = None
    if question.holdout is not None:
        held = held_out(points, question.holdout)
        points, unseen = points.at(~held), points.at(held)
    return fit_law(
        law,
        points,
        fixed=chosen.fixed,
        own_starts=chosen.own_starts,
        num_starts=chosen.num_starts,
        num_bootstraps=chosen.num_bootstraps,
        holdout=unseen,
        budget=chosen.budget,
        seed=chosen.seed,
    )


def question_points(question: FitQuestion, table: pa.Table, law: Law, cluster: str | None = None) -> Points:
    """The runs that a question names, as points of a law. Columns that the law does not have are ignored.

    Runs that only tune settings are left out, unless `where` names the column role.
    """
    if ROLE not in question.where:
        table = main_runs(table)
    rows = select(table, question.where) if question.where else table
    columns = {name: source for name, source in question.columns.items() if name in law.variables}
    return points_of(rows, law, metric=question.metric, columns=columns, cluster=cluster)


def answer_fit(
    question: FitQuestion,
    table: pa.Table,
    options: FitOptions | None = None,
    stated: Mapping[str, str] | None = None,
) -> FitAnswer:
    """Answer a study's question. A fit that is refused is an answer too.

    Args:
        question: Law, metric, runs and hold-out.
        table: One row per run.
        options: How to fit.
        stated: What the user states about the runs, for the checklist.

    Returns:
        The fit with its curves and checklist, or why there is none.
    """
    try:
        fit = fit_question(question, table, options)
    except (AnalysisError, ConfigError) as error:
        return FitAnswer(
            name=question.name, law=question.law, fit=None, refusal=str(error), curves=[], checklist=[]
        )
    return _answer(question, fit, stated)


def _answer(question: FitQuestion, fit: Fit, stated: Mapping[str, str] | None) -> FitAnswer:
    return FitAnswer(
        name=question.name,
        law=question.law,
        fit=fit,
        refusal=None,
        curves=curves(fit),
        checklist=checklist(fit, stated),
    )


def fit_study(
    questions: Sequence[FitQuestion],
    table: pa.Table,
    options: FitOptions | None = None,
    stated: Mapping[str, str] | None = None,
) -> list[FitAnswer]:
    """Answer the fits of a study.

    Args:
        questions: The fits of the study file.
        table: One row per run.
        options: How to fit. Laws that have N and D also choose a run for the budget.
        stated: What the user states about the runs, for the checklist.

    Returns:
        An answer to each question, in order. If a fit is refused, the answer has the reason.
    """
    chosen = options or FitOptions()
    return [
        answer_fit(
            question, table, chosen if _decides(question.law) else chosen._replace(budget=None), stated
        )
        for question in questions
    ]


def _decides(name: str) -> bool:
    """Whether a law can choose a size and a number of tokens."""
    try:
        return {"N", "D"} <= {*find_law(name).variables}
    except ConfigError:
        return False


def fit_laws(
    questions: Sequence[FitQuestion],
    table: pa.Table,
    options: FitOptions,
    stated: Mapping[str, str] | None = None,
) -> tuple[list[FitAnswer], Comparison | None]:
    """Fit one law, or several and compare them.

    Args:
        questions: The same question for each law.
        table: One row per run.
        options: How to fit.
        stated: What the user states about the runs, for the checklist.

    Returns:
        The answers, and the comparison if there are several laws.

    Raises:
        AnalysisError: If there is one law and its fit is refused.
    """
    if len(questions) == 1:
        fit = fit_question(questions[0], table, options)
        return [_answer(questions[0], fit, stated)], None
    answers = [answer_fit(question, table, options, stated) for question in questions]
    return answers, compare_laws(questions, table, options)


def compare_laws(
    questions: Sequence[FitQuestion], table: pa.Table, options: FitOptions | None = None
) -> Comparison:
    """Cross-validate the laws of these questions. Held-out runs are not seen."""
    chosen = options or FitOptions()
    laws, points = [], {}
    for question in questions:
        law = find_law(question.law)
        seen = question_points(question, table, law, chosen.cluster)
        if question.holdout is not None:
            seen = seen.at(~held_out(seen, question.holdout))
        laws.append(law)
        points[law.name] = seen
    return compare(laws, points, num_starts=min(CV_STARTS, chosen.num_starts))


def curves(fit: Fit) -> list[FitCurve]:
    """Lines of the law through its runs: against the variable with most values, one for each setting of the
    others. Tokens come first."""
    law = find_law(fit.law)
    table = {
        name: np.array([residual.variables[name] for residual in fit.residuals]) for name in law.variables
    }
    axis = max(law.variables, key=lambda name: (len({*table[name].tolist()}), name == "D"))
    held = [name for name in law.variables if name != axis]
    groups = np.unique(np.stack([table[name] for name in held], axis=1), axis=0) if held else [()]
    return [_curve(fit, law, table, axis, dict(zip(held, group, strict=True))) for group in _few(groups)]


def _few(groups: Floats | list[tuple[()]]) -> list[Floats | tuple[()]]:
    places = np.linspace(0, len(groups) - 1, min(len(groups), _MOST_CURVES)).round().astype(int)
    return [groups[place] for place in places]


def _curve(fit: Fit, law: Law, table: Mapping[str, Floats], axis: str, held: Mapping[str, float]) -> FitCurve:
    chosen = np.ones(len(table[axis]), bool)
    for name, value in held.items():
        chosen &= table[name] == value
    shown = table[axis][chosen]
    x = np.geomspace(shown.min(), shown.max(), _CURVE_POINTS if shown.min() < shown.max() else 1)
    loss = law.loss(fit.values, {axis: x, **held})
    varying = {name: value for name, value in held.items() if len({*table[name].tolist()}) > 1}
    label = ", ".join(f"{name} = {short_count(value)}" for name, value in varying.items()) or law.name
    return FitCurve(label=label, variable=axis, x=x.tolist(), loss=loss.tolist())
