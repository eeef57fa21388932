"""Checks that the claims and fits of a study name arms and columns that exist."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from reptrain.analysis.laws import find_law
from reptrain.analysis.questions import Claim, FitQuestion
from reptrain.errors import ConfigError, StudyError
from reptrain.study.answerable import check_claim, check_fit
from reptrain.study.arm import Arm
from reptrain.study.result_claims import check_results, entry_of
from reptrain.study.schema import StudyConfig
from reptrain.study.selections import selected, sides
from reptrain.tables.columns import RUN_COLUMNS

COLUMNS = frozenset(column.name for column in RUN_COLUMNS)
"""Columns of runs.parquet, besides the varied keys and those of the commands in `then`."""
_SELECTIONS = ("treatment", "control", "high", "low", "proxy", "target")


def check_questions(study: StudyConfig, arms: Sequence[Arm], tuned: Mapping[str, str]) -> None:
    """Refuse a question about arms or columns that do not exist, or that the arms cannot answer.

    Args:
        study: The study.
        arms: Its arms.
        tuned: By name of an arm without its seed, the group that it is tuned in.

    Raises:
        StudyError: Naming the claim or fit.
    """
    columns = {*COLUMNS, *(key for arm in arms for key in arm.values)}
    for claim in study.claims:
        _check_columns(study, f"claim {claim.name}", claim.columns(), columns)
        for name, selection in sides(claim, _SELECTIONS).items():
            _check_arms(study, f"claim {claim.name}: {name}", {**claim.where, **selection}, arms)
        _check_seeds(study, claim, arms)
        check_results(study, claim, arms)
        check_claim(study, claim, arms, tuned)
    for fit in study.fits:
        names = [fit.metric, *fit.where, *fit.columns.values()]
        if fit.holdout is not None and fit.holdout.column is not None:
            names.append(fit.holdout.column)
        _check_columns(study, f"fit {fit.name}", names, columns)
        _check_fit(study, fit, arms)


def _check_columns(study: StudyConfig, what: str, names: Sequence[str], columns: set[str]) -> None:
    for name in names:
        if name.removeprefix("set.") not in columns and entry_of(study, name) is None:
            near = difflib.get_close_matches(name, columns, n=2)
            varied = ", ".join(sorted(columns - COLUMNS)) or "none"
            raise StudyError(
                f"study {study.name}, {what}",
                got=repr(name),
                rule="must name columns of the runs' table: varied keys or measures",
                remedy=f"Did you mean {' or '.join(near)}?" if near else f"Varied keys: {varied}.",
            )


def _check_arms(study: StudyConfig, what: str, selection: Mapping[str, Any], arms: Sequence[Arm]) -> None:
    if not any(selected(arm, selection) for arm in arms):
        wanted = ", ".join(f"{key}={value}" for key, value in selection.items())
        names = [*dict.fromkeys(arm.group for arm in arms)]
        raise StudyError(
            f"study {study.name}, {what}",
            got=wanted,
            rule="must select an arm of the study",
            remedy=f"The arms are {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}.",
        )


def _check_seeds(study: StudyConfig, claim: Claim, arms: Sequence[Arm]) -> None:
    seeds = {arm.config.seed for arm in arms}
    if len(seeds) < claim.seeds:
        raise StudyError(
            f"study {study.name}, claim {claim.name}",
            got=f"{len(seeds)} seeds in the study",
            rule=f"must have at least the {claim.seeds} seeds of its first look",
            remedy="List more in seeds.",
        )


def _check_fit(study: StudyConfig, fit: FitQuestion, arms: Sequence[Arm]) -> None:
    try:
        find_law(fit.law)
    except ConfigError as error:
        what = f"study {study.name}, fit {fit.name}: {error.what}"
        raise StudyError(what, got=error.got, rule=error.rule, remedy=error.remedy) from error
    if fit.where:
        _check_arms(study, f"fit {fit.name}: where", fit.where, arms)
    check_fit(study, fit, [arm for arm in arms if selected(arm, fit.where)])
