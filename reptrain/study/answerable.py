"""Whether the planned runs of a study can answer its questions, before the first one starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reptrain.analysis.effects import effects
from reptrain.analysis.laws import find_law
from reptrain.analysis.points import variable_columns
from reptrain.analysis.questions import Claim, FitQuestion, Optimum, Regret
from reptrain.analysis.rows import VARIED, Run, matches
from reptrain.errors import AnalysisError, StudyError
from reptrain.study.arm import Arm
from reptrain.study.schema import StudyConfig
from reptrain.tables.columns import MAIN, RUN_COLUMNS

_TEXTS = {column.name for column in RUN_COLUMNS if column.type in ("string", "bool")}


def check_claim(study: StudyConfig, claim: Claim, arms: Sequence[Arm], tuned: Mapping[str, str]) -> None:
    """Refuse a claim that compares an arm with itself, or runs that cannot be paired.

    Claims about columns that only finished runs have are not checked.

    Args:
        study: The study.
        claim: One of its claims.
        arms: The arms.
        tuned: By name of an arm without its seed, the group that it is tuned in.

    Raises:
        StudyError: Naming the claim.
    """
    what = f"study {study.name}, claim {claim.name}"
    by = claim.contrast.tuned.by if claim.contrast.tuned is not None else None
    numbers = [claim.metric, *([by] if by else []), *(rule.column for rule in claim.void)]
    _check_numbers(what, [*numbers, *([per] if (per := getattr(claim.contrast, "per", None)) else [])])
    keys = {key for arm in arms for key in arm.values}
    tuned_keys = {arm.group: _tuned_keys(study, arm) for arm in arms}
    known = keys | {"arm", "seed"}
    selected = {key.removeprefix(VARIED) for key in claim.columns() if key not in numbers}
    along = {getattr(claim.contrast, name, None) for name in ("per", "over")}
    if not selected <= known or along & {key for of_arm in tuned_keys.values() for key in of_arm}:
        return
    runs = [_planned(arm, numbers, tuned_keys[arm.group], tuned) for arm in arms]
    _check_sides(what, claim, runs)
    if isinstance(claim.contrast, Optimum):
        # Whether there is an optimum depends on the losses.
        return
    found = effects(runs, claim)
    if found.why_none:
        raise StudyError(
            what,
            got=found.why_none,
            rule="must compare runs of the study that can be paired",
            remedy="Change its contrast, or the arms and seeds.",
        )


def _tuned_keys(study: StudyConfig, arm: Arm) -> set[str]:
    return {*(arm.point.entry.tune or (study.tune.axes if study.tune is not None else {}))}


def _planned(arm: Arm, numbers: Sequence[str], tuned_keys: set[str], tuned: Mapping[str, str]) -> Run:
    """A run with a value in every column that a claim needs. Tuned settings differ between groups."""
    values: dict[str, Any] = {f"{VARIED}{key}": value for key, value in arm.values.items()}
    values |= {f"{VARIED}{key}": f"tuned for {tuned.get(arm.group)}" for key in tuned_keys}
    values |= dict.fromkeys(numbers, 0.0) | {"arm": arm.group, "seed": arm.config.seed, "role": MAIN}
    return Run(arm.name, arm.config.seed, arm.name, values)


def _check_sides(what: str, claim: Claim, runs: Sequence[Run]) -> None:
    contrast = claim.contrast
    names = ("proxy", "target") if isinstance(contrast, Regret) else ("treatment", "control")
    one, other = (getattr(contrast, name) for name in names)
    if one is None or other is None:
        return
    both = [run for run in runs if all(matches(run, side) for side in (claim.where, one, other))]
    if both:
        raise StudyError(
            what,
            got=f"{both[0]['arm']} on both sides",
            rule=f"must have different arms as {names[0]} and {names[1]}",
            remedy="Change one of the two.",
        )


def check_fit(study: StudyConfig, fit: FitQuestion, arms: Sequence[Arm]) -> None:
    """Refuse a fit whose law lacks columns, or has as many parameters as there are arms to fit.

    Args:
        study: The study.
        fit: One of its fits.
        arms: The arms that it may use.

    Raises:
        StudyError: Naming the fit.
    """
    what = f"study {study.name}, fit {fit.name}"
    law = find_law(fit.law)
    _check_numbers(what, [fit.metric, *fit.columns.values()])
    try:
        variable_columns(law, fit.columns)
    except AnalysisError as error:
        raise StudyError(
            f"{what}: {error.what}", got=error.got, rule=error.rule, remedy=error.remedy
        ) from error
    num_arms = len({arm.group for arm in arms})
    ends_early = any(arm.config.evaluate.patience is not None for arm in arms)
    if num_arms <= len(law.parameters) and "role" not in fit.where and not ends_early:
        raise StudyError(
            what,
            got=f"{num_arms} arm{'s' * (num_arms != 1)}",
            rule=f"must have more arms than the {len(law.parameters)} parameters of the law {law.name}",
            remedy="Widen `where`, add arms, or choose a law with fewer parameters.",
        )


def _check_numbers(what: str, columns: Sequence[str]) -> None:
    for name in columns:
        if name in _TEXTS:
            raise StudyError(
                what, got=name, rule="must use columns of numbers here", remedy="Name another column."
            )
