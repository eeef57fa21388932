"""One page for several studies, whose claims are judged together."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from reptrain.analysis.claims import ClaimResult, StudyClaims, judge_studies
from reptrain.analysis.questions import questions_hash
from reptrain.analysis.tables import main_runs
from reptrain.files import write_atomically
from reptrain.report.claim_lines import claim_lines
from reptrain.report.drawings import Drawing, claims_drawing, study_drawings
from reptrain.report.page import arm_labels, render_template
from reptrain.study.ask import NamedStudy
from reptrain.study.collect import collect
from reptrain.study.paths import report_path
from reptrain.study.verdict import verdict
from reptrain.study.write_tables import write_tables


@dataclass(frozen=True)
class Section:
    """The part of the page about one study.

    Attributes:
        name: Name of the study.
        question: Its question.
        answer: Its answer in one sentence; empty if it has not run.
        report: Link to its own report; empty if it has not run.
        drawings: Its figures.
    """

    name: str
    question: str
    answer: str = ""
    report: str = ""
    drawings: Sequence[Drawing] = ()


def write_joint_report(studies: Sequence[NamedStudy], page: Path) -> list[ClaimResult]:
    """Write one page for several studies: all claims, corrected together, and the figures of each study.

    Args:
        studies: The studies. The tables of studies with a folder are rewritten.
        page: The HTML file to write.

    Returns:
        The claims with their verdicts.

    Raises:
        ReptrainError: If a study is wrong, or two have the same name.
    """
    sections, asked = [], []
    for study in studies:
        section, runs = _section(study, page)
        sections.append(section)
        asked.append(runs)
    results = judge_studies(asked)
    command = " ".join(["reptrain study claims", *(shlex.quote(str(study.path)) for study in studies)])
    text = render_template(
        "joint.html.j2",
        sections=sections,
        claims=claim_lines(results),
        drawing=claims_drawing(results, command),
        hashes={s.config.name: questions_hash(s.config.claims, s.config.fits) for s in studies},
        command=command,
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, text)
    return results


def _section(study: NamedStudy, page: Path) -> tuple[Section, StudyClaims]:
    """A study's part of the page, and its claims with the current tables."""
    config, folder = study.config, study.folder
    question = config.question or config.name
    if folder is None:
        return Section(config.name, question), study.asked
    written = write_tables(config, folder)
    runs, evaluations = pq.read_table(written.runs), pq.read_table(written.evaluations)
    rows = collect(config, folder)
    shown = main_runs(runs)
    drawings = study_drawings(shown, main_runs(evaluations), arm_labels(rows, shown))
    section = Section(
        config.name,
        question,
        answer=verdict(rows),
        report=os.path.relpath(report_path(folder), page.parent),
        # The page has the figures of all studies, so their names must differ.
        drawings=[replace(drawing, name=f"{config.name}-{drawing.name}") for drawing in drawings],
    )
    return section, study.asked._replace(table=runs)
