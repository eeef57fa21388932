"""Answers to the questions of studies: claims of one study or several, and fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reptrain.analysis.answer import FitOptions, fit_laws, fit_study
from reptrain.analysis.answers import FitAnswer
from reptrain.analysis.claims import ClaimResult, StudyClaims, judge_studies
from reptrain.analysis.points import METRIC
from reptrain.analysis.questions import FitQuestion, Holdout
from reptrain.analysis.tables import read_table
from reptrain.errors import AnalysisError
from reptrain.study.schema import StudyConfig, load_study, open_study


@dataclass(frozen=True)
class NamedStudy:
    """A study that a user names.

    Attributes:
        path: Its folder or its YAML file.
        config: The study.
        folder: Its folder; None if it has not run.
        asked: Its claims with its table of runs.
    """

    path: Path
    config: StudyConfig
    folder: Path | None
    asked: StudyClaims


def read_study(path: Path, table: Path | None = None) -> NamedStudy:
    """Read a study and its table of runs.

    Args:
        path: The folder that `study run` wrote, or the YAML file of a study.
        table: The table of runs. Default: that of the folder, or none for a YAML file.

    Raises:
        ReptrainError: If the study or the table cannot be read.
    """
    folder = path if path.is_dir() else None
    config = open_study(path) if folder is not None else load_study(path)
    source = table or folder
    runs = read_table(source) if source is not None else None
    return NamedStudy(path, config, folder, StudyClaims(config.name, runs, config.claims))


def claims(*studies: Path) -> list[ClaimResult]:
    """Judge the claims of studies together: Holm's correction covers the claims of all of them.

    Args:
        *studies: Folders that `run_study` wrote, or YAML files of studies that have not run; the
            correction includes their claims.

    Returns:
        One result for each claim: verdict, effect with its interval, and the seeds and runs that were used.

    Raises:
        ReptrainError: If a study or its table cannot be read, or two studies have the same name.
    """
    return judge_studies([read_study(study).asked for study in studies])


def fit(
    source: Path,
    law: str | None = None,
    *,
    metric: str = METRIC,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
    holdout: Holdout | None = None,
    options: FitOptions | None = None,
) -> list[FitAnswer]:
    """Fit a law to the losses of runs, or compute the fits of a study.

    Args:
        source: A Parquet or CSV table with a row per run, or the folder of a study.
        law: Name of the law; `reptrain fit --laws` lists them. Default: the fits of the study file, with
            their metric, columns, rows and hold-out.
        metric: Column of the loss in nats.
        columns: Column of each variable of the law, if it is not the column of a study.
        where: Values of columns that select the rows.
        holdout: Runs to hold out.
        options: Starts, bootstrap and budget.

    Returns:
        One answer for the law, or one for each fit of the study. `fit` of an answer has parameters,
        intervals, local optima, scores and residuals; a study's fit that was refused has `refusal` instead.

    Raises:
        ReptrainError: If the table or the study cannot be read, or the fit of a named law is refused.
    """
    if law is not None:
        settings = {"columns": dict(columns or {}), "where": dict(where or {}), "holdout": holdout}
        question = FitQuestion(name=law, law=law, metric=metric, **settings)
        return fit_laws([question], read_table(source), options or FitOptions())[0]
    questions = open_study(source).fits if source.is_dir() else []
    if not questions:
        raise AnalysisError(
            f"fits of {source}",
            got="none",
            rule="must exist if no law is named",
            remedy="Name a law, or add `fits` to the study file.",
        )
    return fit_study(questions, read_table(source), options)
