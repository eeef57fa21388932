"""From a table of runs to the effect of a claim in every independent seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reptrain.analysis.picks import optima, regrets
from reptrain.analysis.questions import (
    Claim,
    Difference,
    Interaction,
    Optimum,
    Regret,
    Slope,
    Tuning,
    Value,
)
from reptrain.analysis.rows import (
    VARIED,
    NoRunsError,
    Run,
    complete_seeds,
    grouped,
    matches,
    mean_of,
    runs_for,
    usable,
    varied_keys,
    words,
)

_Paired = Difference | Value | Interaction | Slope


@dataclass(frozen=True)
class Effects:
    """The effect of a claim in every independent unit: a seed, or seeds that share a prefix.

    Attributes:
        units: Name of each unit, in the order of their first seeds.
        values: Effect in each unit.
        seeds: Seeds of each unit.
        runs: Names of the runs that were used.
        excluded: Reason why a run or a seed was left out, by name.
        why_none: Why there are no effects, if there are none.
    """

    units: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    seeds: tuple[tuple[int, ...], ...] = ()
    runs: tuple[str, ...] = ()
    excluded: Mapping[str, str] = field(default_factory=dict)
    why_none: str = ""


def effects(runs: Sequence[Run], claim: Claim, metric: str | None = None) -> Effects:
    """The effect of a claim in every unit.

    Args:
        runs: All runs of the study, see `runs_of`.
        claim: The claim.
        metric: Column to compare; the claim's metric by default.
    """
    metric = metric or claim.metric
    excluded: dict[str, str] = {}
    try:
        if not runs:
            raise NoRunsError("the study has no table of runs yet")
        chosen = runs_for(runs, claim)
        if not chosen:
            raise NoRunsError(f"no run has {words(claim.where)}")
        kept = [run for run in _relevant(chosen, claim) if usable(run, claim.void, metric, excluded)]
        if not kept:
            raise NoRunsError("none of its runs can be used")
        by_seed, used = _by_seed(kept, claim, metric, excluded)
    except NoRunsError as error:
        return Effects(excluded=excluded, why_none=str(error))
    return _clustered(by_seed, used, excluded)


def contrasted_arms(runs: Sequence[Run], claim: Claim) -> list[str]:
    """Names of the arms that a claim compares. Where it tunes, these are the arms of all values."""
    contrast = claim.contrast
    used = _relevant(runs_for(runs, claim), claim)
    if isinstance(contrast, _Paired) and contrast.tuned is None:
        names = {*effects(runs, claim).runs}
        used = [run for run in used if run.name in names]
    return [*dict.fromkeys(str(run["arm"]) for run in used)]


def _relevant(runs: Sequence[Run], claim: Claim) -> list[Run]:
    """The runs on either side of the contrast."""
    contrast = claim.contrast
    names = ("proxy", "target") if isinstance(contrast, Regret) else ("treatment", "control")
    sides = [side for name in names if (side := getattr(contrast, name)) is not None]
    relevant = [run for run in runs if any(matches(run, side) for side in sides)]
    if isinstance(contrast, Interaction):
        relevant = [run for run in relevant if matches(run, contrast.high) or matches(run, contrast.low)]
    for side in sides:
        if not any(matches(run, side) for run in relevant):
            raise NoRunsError(f"no run has {words(side)}")
    return relevant


def _by_seed(
    runs: Sequence[Run], claim: Claim, metric: str, excluded: dict[str, str]
) -> tuple[dict[int, float], list[Run]]:
    """The effect of each complete seed, and the runs that enter."""
    contrast = claim.contrast
    if isinstance(contrast, Regret):
        return regrets(runs, contrast, metric, excluded)
    if isinstance(contrast, Optimum):
        return optima(runs, contrast, metric, excluded)
    fixed = _matched_keys(runs, contrast)
    parts = [
        _Part(label, weight, pairs)
        for label, weight, within in _parts(runs, contrast)
        for pairs in [_pairs(within, contrast, fixed, label, metric)]
    ]
    complete = complete_seeds([run for part in parts for run in part.runs], excluded)
    values = {
        seed: float(sum(part.weight * part.difference(seed, metric) for part in parts)) for seed in complete
    }
    return values, [run for part in parts for run in part.runs if run.seed in values]


def _parts(runs: Sequence[Run], contrast: _Paired) -> Iterable[tuple[str, float, list[Run]]]:
    """The runs of each difference and its weight in the effect: (label, weight, runs)."""
    if isinstance(contrast, Difference | Value):
        return [("", 1.0, list(runs))]
    if isinstance(contrast, Interaction):
        sides = ((contrast.high, 1.0), (contrast.low, -1.0))
        return [(words(side), weight, [run for run in runs if matches(run, side)]) for side, weight in sides]
    levels = sorted({run.number(contrast.per) for run in runs})
    if len(levels) < 2 or not all(level > 0 for level in levels):
        raise NoRunsError(f"{contrast.per} must have two positive values or more, but has {levels}")
    x = np.log(levels) / math.log(contrast.factor)
    # The least-squares slope is a weighted sum of the differences at the levels.
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    return [
        (f"{contrast.per} = {level:g}", float(weight), [r for r in runs if r.number(contrast.per) == level])
        for level, weight in zip(levels, weights, strict=True)
    ]


def _matched_keys(runs: Sequence[Run], contrast: _Paired) -> list[str]:
    """The varied keys in which a treatment run must agree with its control run."""
    named = {*contrast.treatment, *(contrast.control or {}), *contrast.free}
    if contrast.tuned is not None:
        named |= {*contrast.tuned.over}
    if isinstance(contrast, Interaction):
        named |= {*contrast.high, *contrast.low}
    named = {key.removeprefix(VARIED) for key in named}
    if "arm" in named:
        # Arms that are named need not agree in anything.
        return []
    return [key for key in varied_keys(runs) if key not in named]


@dataclass(frozen=True)
class _Part:
    """One difference of an effect: groups of treatment and control runs that agree in the matched keys."""

    label: str
    weight: float
    groups: Sequence[tuple[list[Run], list[Run]]]

    @property
    def runs(self) -> list[Run]:
        return [run for treatment, control in self.groups for run in [*treatment, *control]]

    def difference(self, seed: int, metric: str) -> float:
        """Treatment minus control in one seed: the mean over the groups."""
        return float(
            np.mean(
                [
                    _mean(treatment, seed, metric) - _mean(control, seed, metric)
                    for treatment, control in self.groups
                ]
            )
        )


def _mean(runs: Sequence[Run], seed: int, metric: str) -> float:
    values = [run.number(metric) for run in runs if run.seed == seed]
    return float(np.mean(values)) if values else 0.0


def _pairs(
    runs: Sequence[Run],
    contrast: _Paired,
    fixed: Sequence[str],
    label: str,
    metric: str,
) -> list[tuple[list[Run], list[Run]]]:
    """The groups of a difference. Without a control, the treatment alone."""
    treatment = grouped([run for run in runs if matches(run, contrast.treatment)], fixed)
    if contrast.tuned is not None:
        treatment = {key: _tuned(group, contrast.tuned) for key, group in treatment.items()}
    where = f" at {label}" if label else ""
    if contrast.control is None:
        if not treatment:
            raise NoRunsError(f"no finished run has {words(contrast.treatment)}{where}")
        return [(group, []) for group in treatment.values()]
    control = grouped([run for run in runs if matches(run, contrast.control)], fixed)
    if contrast.tuned is not None:
        control = {key: _tuned(group, contrast.tuned) for key, group in control.items()}
    for side, groups in ((contrast.treatment, treatment), (contrast.control, control)):
        if not groups:
            raise NoRunsError(f"no finished run has {words(side)}{where}")
    shared = [key for key in treatment if key in control]
    if not shared:
        differing = ", ".join(_differing(treatment, control, fixed))
        raise NoRunsError(
            f"treatment and control{where} always differ in {differing}; list the keys that are tied to the"
            " contrast under free"
        )
    for key in shared:
        _check_measure([*treatment[key], *control[key]], metric)
    return [(treatment[key], control[key]) for key in shared]


def _check_measure(runs: Sequence[Run], metric: str) -> None:
    """Losses on different held-out text, or under different objectives, are not comparable."""
    measures = {run["measure"]: run.name for run in runs if run["measure"] is not None}
    if metric.startswith("loss_") and len(measures) > 1:
        one, other = [*measures.values()][:2]
        raise NoRunsError(f"{metric} of {one} and {other} is not comparable: their measure differs")


def _differing(
    treatment: Mapping[tuple[str, ...], Any], control: Mapping[tuple[str, ...], Any], keys: Sequence[str]
) -> list[str]:
    """The keys whose values on the two sides have nothing in common; all keys if there is none."""
    apart = [
        key
        for place, key in enumerate(keys)
        if not {setting[place] for setting in treatment} & {setting[place] for setting in control}
    ]
    return apart or list(keys)


def _tuned(runs: Sequence[Run], tuning: Tuning) -> list[Run]:
    """The runs at the setting with the lowest mean of the selection metric."""
    settings = grouped((run for run in runs if math.isfinite(run.number(tuning.by))), tuning.over)
    if not settings:
        raise NoRunsError(f"no run has {tuning.by}")
    return min(settings.values(), key=lambda group: mean_of(group, tuning.by))


def _clustered(by_seed: Mapping[int, float], runs: Sequence[Run], excluded: dict[str, str]) -> Effects:
    """Seeds whose runs share a cluster are one unit: their mean."""
    parent = {seed: seed for seed in by_seed}

    def root(seed: int) -> int:
        while parent[seed] != seed:
            seed = parent[seed]
        return seed

    first_seed: dict[str, int] = {}
    for run in runs:
        if run.seed in parent:
            # The smallest seed names the unit.
            one, other = sorted((root(run.seed), root(first_seed.setdefault(run.cluster, run.seed))))
            parent[other] = one
    units: dict[int, list[int]] = {}
    for seed in sorted(by_seed):
        units.setdefault(root(seed), []).append(seed)
    return Effects(
        units=tuple(f"seed{'s' if len(s) > 1 else ''} {', '.join(map(str, s))}" for s in units.values()),
        values=tuple(float(np.mean([by_seed[seed] for seed in seeds])) for seeds in units.values()),
        seeds=tuple(tuple(seeds) for seeds in units.values()),
        runs=tuple(dict.fromkeys(run.name for run in runs if run.seed in parent)),
        excluded=excluded,
    )
