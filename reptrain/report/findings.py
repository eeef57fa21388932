"""What analysis computes from a study's tables, for the report to draw."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reptrain.analysis.answers import FitAnswer
from reptrain.analysis.claims import ClaimResult, judge
from reptrain.analysis.questions import questions_hash
from reptrain.errors import AnalysisError
from reptrain.files import read_small
from reptrain.reading import parse_json
from reptrain.study.paths import questions_path
from reptrain.study.schema import StudyConfig
from reptrain.study.write_tables import write_tables


@dataclass(frozen=True)
class Findings:
    """The tables of a study and the answers to its questions.

    Attributes:
        runs: A row for each run.
        evaluations: A row for each evaluation.
        claims: The claims with their verdicts.
        fits: The answers to the fits.
        questions_hash: Hash of claims and fits; empty if there are none.
        cautions: What a reader must know before believing an answer.
    """

    runs: pa.Table
    evaluations: pa.Table
    claims: list[ClaimResult] = field(default_factory=list)
    fits: list[FitAnswer] = field(default_factory=list)
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
    if not study.claims and not study.fits:
        return Findings(runs, evaluations)
    current = questions_hash(study.claims, study.fits)
    cautions = _changed(current, out)
    claims: list[ClaimResult] = []
    try:
        claims = judge(runs, study.claims)
    except AnalysisError as error:
        cautions.append(str(error))
    return Findings(runs, evaluations, claims, [], current, cautions)


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
