"""What analysis computes from a study's tables, for the report to draw."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reptrain.analysis.advise import advice_text, advise
from reptrain.analysis.answer import NUM_BOOTSTRAPS, FitOptions
from reptrain.analysis.answers import FitAnswer
from reptrain.analysis.claims import ClaimResult, judge
from reptrain.analysis.laws import find_law
from reptrain.analysis.questions import questions_hash
from reptrain.analysis.tables import main_runs
from reptrain.errors import AnalysisError, ConfigError
from reptrain.files import read_small
from reptrain.reading import parse_json
from reptrain.report.fit_cache import answer_fits
from reptrain.study.paths import questions_path
from reptrain.study.schema import StudyConfig
from reptrain.study.tuning import TunedGroup, tuned_arms
from reptrain.study.write_tables import write_tables

_LARGER = 10.0


@dataclass(frozen=True)
class Findings:
    """The tables of a study and the answers to its questions.

    Attributes:
        runs: A row for each main run.
        evaluations: A row for each of their evaluations.
        tuned: The tuning of each group of arms.
        claims: The claims with their verdicts.
        fits: The answers to the fits.
        advice: The best run for ten times the largest run's FLOPs, by the first law that predicts it.
        questions_hash: Hash of claims and fits; empty if there are none.
        cautions: What a reader must know before believing an answer.
    """

    runs: pa.Table
    evaluations: pa.Table
    tuned: list[TunedGroup] = field(default_factory=list)
    claims: list[ClaimResult] = field(default_factory=list)
    fits: list[FitAnswer] = field(default_factory=list)
    advice: str = ""
    questions_hash: str = ""
    cautions: list[str] = field(default_factory=list)


def find(study: StudyConfig, out: Path) -> Findings:
    """Write the tables of a study and answer its questions.

    Args:
        study: The study.
        out: Its folder.

    Raises:
        StudyError: If the study itself is wrong.
    """
    written = write_tables(study, out)
    runs, evaluations = pq.read_table(written.runs), pq.read_table(written.evaluations)
    shown = main_runs(runs), main_runs(evaluations), tuned_arms(study, out)[1]
    if not study.claims and not study.fits:
        return Findings(*shown)
    current = questions_hash(study.claims, study.fits)
    cautions = _changed(current, out)
    claims: list[ClaimResult] = []
    try:
        claims = judge(runs, study.claims)
    except AnalysisError as error:
        cautions.append(str(error))
    budget = _budget(shown[0])
    asked = [
        (question, FitOptions(budget=budget if _decides(question.law) else None)) for question in study.fits
    ]
    fits = answer_fits(asked, runs, Path(written.runs).with_name("fits.json")) if asked else []
    advice = [text for answer in fits if budget and (text := _advice(answer, budget))]
    return Findings(*shown, claims, fits, advice[0] if advice else "", current, cautions)


def _budget(runs: pa.Table) -> tuple[float, float] | None:
    """The budget to advise on: ten times the FLOPs of the largest run, on the most unique tokens."""
    flops, unique = (
        max((value for value in runs[name].to_pylist() if value), default=None)
        for name in ("train_flops", "unique_tokens")
    )
    return (_LARGER * flops, float(unique)) if flops and unique else None


def _decides(name: str) -> bool:
    """Whether a law can choose a size and a number of epochs."""
    try:
        return {"N", "D", "U"} <= {*find_law(name).variables}
    except ConfigError:
        return False


def _advice(answer: FitAnswer, budget: tuple[float, float]) -> str:
    """Advice by a law of size, tokens and unique tokens; empty for another law."""
    if answer.fit is None or answer.fit.decision is None:
        return ""
    compute, unique_tokens = budget
    try:
        return advice_text(advise(unique_tokens, compute, fit=answer.fit, samples=NUM_BOOTSTRAPS))
    except AnalysisError:
        return ""


def _changed(current: str, out: Path) -> list[str]:
    """A caution if the questions are not those that were written before the first run."""
    path = questions_path(out)
    try:
        recorded = parse_json(read_small(path))["hash"]
    except (OSError, ValueError, LookupError, TypeError):
        return ["No record shows that the claims were written before the first run started."]
    if recorded == current:
        return []
    return ["The claims or fits were changed after the first run started."]
