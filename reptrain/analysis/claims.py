"""Verdicts on the claims of studies, from their tables of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from reptrain.analysis.decisions import ALPHA, Decision, Look, LookEvidence, Verdict, decide, looks
from reptrain.analysis.effects import Effects, effects
from reptrain.analysis.intervals import DRAWS, Method
from reptrain.analysis.questions import EXPLORATORY, FEWEST_SEEDS, Claim, sibling_metric
from reptrain.analysis.rows import Run, runs_of, runs_of_studies
from reptrain.config.base import Frozen
from reptrain.errors import AnalysisError

_POWER = 0.8
_MOST_SEEDS = 10_000
_STUDY = "study"
_READINGS = {
    "supported": "the interval agrees with the claim",
    "contradicted": "the interval disagrees with the claim",
    "negligible": "the interval lies within the margin of equivalence",
    "undecided": "the interval neither agrees nor disagrees with the claim",
}


class UnitEffect(Frozen):
    """The effect in one seed, or the mean of seeds that share a prefix of their training."""

    unit: str
    effect: float


class Judgment(Frozen):
    """The verdict on a claim by one metric."""

    metric: str
    verdict: Verdict
    reason: str = ""
    """Why there is no decision, if there is none."""
    effect: float | None = None
    """Mean effect over the units that were used."""
    low: float | None = None
    high: float | None = None
    """Bounds of the interval; None where the interval has no bound."""
    coverage: float | None = None
    """Coverage of the interval, after all corrections."""
    p: float | None = None
    p_adjusted: float | None = None
    """After Holm's correction over the family."""
    method: Method | None = None
    look: int | None = None
    """Which declared look was used: 1 or 2."""
    seeds_used: int = 0
    seeds_needed: int | None = None
    """With `undecided`: about how many more seeds a decision needs."""
    units: tuple[UnitEffect, ...] = ()
    """All units, those beyond the declared looks included."""
    runs: tuple[str, ...] = ()
    excluded: Mapping[str, str] = Field(default_factory=dict)
    """Runs and seeds that were left out, with the reason."""


class ClaimResult(Frozen):
    """A claim with its verdict, by its own metric and by the other checkpoint's."""

    study: str = ""
    """Name of its study; empty if one study is judged alone."""
    claim: Claim
    judged: Judgment
    other_checkpoint: Judgment | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict by the claim's own metric."""
        return self.judged.verdict


class StudyClaims(NamedTuple):
    """A study's claims with its runs.

    Args:
        name: Name of the study.
        table: Its table of runs; None if it has not run yet.
        claims: All claims of the study, since Holm's correction counts all of them.
    """

    name: str
    table: pa.Table | None
    claims: Sequence[Claim]


def judge(
    table: pa.Table, claims: Sequence[Claim], *, alpha: float = ALPHA, num_draws: int = DRAWS
) -> list[ClaimResult]:
    """Judge all claims of a study.

    Args:
        table: The study's table of runs.
        claims: All claims that the study declared, since Holm's correction counts them all.
        alpha: Chance of any false verdict in a family.
        num_draws: Bootstrap draws.

    Returns:
        One result for each claim, in their order.

    Raises:
        AnalysisError: If the table has no seeds, or mixes versions of the numerics.
    """
    return judge_studies([StudyClaims("", table, claims)], alpha=alpha, num_draws=num_draws)


def judge_studies(
    studies: Sequence[StudyClaims], *, alpha: float = ALPHA, num_draws: int = DRAWS
) -> list[ClaimResult]:
    """Judge the claims of several studies. A family of claims may extend over them.

    A claim that selects by the key ``study`` is judged from the runs of all studies, and any other claim from
    the runs of its own study.

    Args:
        studies: The studies, with different names.
        alpha: Chance of any false verdict in a family.
        num_draws: Bootstrap draws.

    Returns:
        One result for each claim, in the order of the studies.

    Raises:
        AnalysisError: If two studies have one name, a table has no seeds, or runs that are compared mix
            versions of the numerics.
    """
    _refuse_equal_names([study.name for study in studies])
    by_study = {study.name: runs_of(study.table) if study.table is not None else [] for study in studies}
    asked = [(study.name, claim) for study in studies for claim in study.claims]
    across = any(_STUDY in claim.columns() for _, claim in asked) and len(studies) > 1
    pooled = runs_of_studies(by_study) if across else []
    runs = [pooled if across and _STUDY in claim.columns() else by_study[name] for name, claim in asked]
    claims = [claim for _, claim in asked]
    own = _judged(runs, claims, [claim.metric for claim in claims], alpha, num_draws)
    siblings = [_known_sibling(of_claim, claim) for of_claim, claim in zip(runs, claims, strict=True)]
    metrics = [other or claim.metric for other, claim in zip(siblings, claims, strict=True)]
    others = _judged(runs, claims, metrics, alpha, num_draws)
    return [
        ClaimResult(study=name, claim=claim, judged=judged, other_checkpoint=other if sibling else None)
        for (name, claim), judged, other, sibling in zip(asked, own, others, siblings, strict=True)
    ]


def _refuse_equal_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise AnalysisError(
            "studies",
            got=f"{twice[0]}, {names.count(twice[0])} times",
            rule="must have different names",
            remedy="Name each study once; set `name` in one of the study files.",
        )


def _known_sibling(runs: Sequence[Run], claim: Claim) -> str | None:
    """The claim's metric at the other checkpoint, if the runs have it."""
    metric = sibling_metric(claim.metric)
    return metric if any(metric in run.values for run in runs) else None


def _judged(
    runs: Sequence[Sequence[Run]],
    claims: Sequence[Claim],
    metrics: Sequence[str],
    alpha: float,
    num_draws: int,
) -> list[Judgment]:
    found = [
        effects(of_claim, claim, metric)
        for of_claim, claim, metric in zip(runs, claims, metrics, strict=True)
    ]
    return judge_effects(claims, found, metrics=metrics, alpha=alpha, num_draws=num_draws)


def judge_effects(
    claims: Sequence[Claim],
    found: Sequence[Effects],
    *,
    metrics: Sequence[str] | None = None,
    alpha: float = ALPHA,
    num_draws: int = DRAWS,
) -> list[Judgment]:
    """Judge claims from effects that are known; each family is corrected on its own.

    The family `exploratory` gets intervals without correction, and no verdicts.

    Args:
        claims: All claims.
        found: The effects of each claim.
        metrics: Metric of each claim; its own by default.
        alpha: Chance of any false verdict in a family.
        num_draws: Bootstrap draws.
    """
    families: dict[str, list[int]] = {}
    for index, claim in enumerate(claims):
        families.setdefault(claim.family, []).append(index)
    judgments: dict[int, Judgment] = {}
    for index in families.pop(EXPLORATORY, []):
        metric = claims[index].metric if metrics is None else metrics[index]
        judgments[index] = _explored(claims[index], metric, found[index], alpha, num_draws)
    for members in families.values():
        of_family = [claims[index] for index in members]
        samples = [
            np.array(found[index].values)[:, None] if found[index].values else None for index in members
        ]
        decisions = decide(of_family, samples, alpha=alpha, num_draws=num_draws)
        for index, decision in zip(members, decisions, strict=True):
            metric = claims[index].metric if metrics is None else metrics[index]
            judgments[index] = _judgment(claims[index], metric, found[index], decision)
    return [judgments[index] for index in range(len(claims))]


def _shared(metric: str, found: Effects) -> dict[str, Any]:
    """The fields of a judgment that do not depend on the verdict."""
    return {
        "metric": metric,
        "units": [
            UnitEffect(unit=unit, effect=value) for unit, value in zip(found.units, found.values, strict=True)
        ],
        "runs": list(found.runs),
        "excluded": dict(found.excluded),
    }


def _explored(claim: Claim, metric: str, found: Effects, alpha: float, num_draws: int) -> Judgment:
    """The effect of a claim of the family `exploratory`, with an interval that is not corrected."""
    shared, num_units = _shared(metric, found), len(found.values)
    if not num_units:
        return Judgment(**shared, verdict="not run", reason=found.why_none)
    if num_units == 1:
        effect = found.values[0]
        return Judgment(
            **shared, verdict=EXPLORATORY, effect=effect, seeds_used=1, reason="one seed has no interval"
        )
    look = Look(num_units, 1.0)
    seen = LookEvidence.of(claim, look, np.array(found.values)[:, None], num_draws, fewest=2)
    return Judgment(
        **shared,
        **_interval(claim, seen, alpha),
        verdict=EXPLORATORY,
        method=seen.means.method(),
        seeds_used=num_units,
        reason=f"{_READINGS[seen.verdicts(np.array([alpha]))[0].item()]}; the interval is not corrected",
    )


def _judgment(claim: Claim, metric: str, found: Effects, decision: Decision) -> Judgment:
    verdict: Verdict = decision.verdict[0].item()
    shared = {**_shared(metric, found), "verdict": verdict}
    num_units = len(found.values)
    if not num_units:
        return Judgment(**shared, reason=found.why_none)
    if not decision.evidence:
        missing = claim.seeds - num_units
        return Judgment(
            **shared,
            effect=float(np.mean(found.values)),
            seeds_used=num_units,
            seeds_needed=missing,
            reason=f"{num_units} of the {claim.seeds} declared seeds",
        )
    index = int(decision.used[0])
    seen = decision.evidence[index]
    needed = _seeds_needed(claim, decision, num_units) if verdict == "undecided" else None
    return Judgment(
        **shared,
        **_interval(claim, seen, float(decision.level[0])),
        p=float(decision.p[0]),
        p_adjusted=float(decision.p_adjusted[0]),
        method=decision.method(),
        look=index + 1,
        seeds_used=seen.look.seeds,
        seeds_needed=needed,
        reason=_why_undecided(claim, num_units, needed) if verdict == "undecided" else "",
    )


def _interval(claim: Claim, seen: LookEvidence, level: float) -> Mapping[str, float | None]:
    """The effect and the interval that the verdict is read from, in the metric's own sign."""
    # A test of equivalence at a level is read from the interval with twice that level outside.
    outside = level * seen.look.share * (2.0 if claim.direction == "equal" else 1.0)
    low, high = (float(bound[0]) for bound in seen.means.interval(np.array([outside])))
    mean = float(seen.means.mean[0])
    if claim.direction == "less":
        mean, low, high = -mean, -high, -low
    return {
        "effect": mean,
        "low": low if math.isfinite(low) else None,
        "high": high if math.isfinite(high) else None,
        "coverage": 1.0 - outside,
    }


def _seeds_needed(claim: Claim, decision: Decision, num_units: int) -> int | None:
    """More seeds for a decision: up to the next declared look, else by the power of a t test.

    None if more than 10,000 would be needed.
    """
    declared = [look.seeds for look in looks(claim) if look.seeds > num_units]
    if declared:
        return declared[0] - num_units
    seen = decision.evidence[-1]
    mean, std = float(seen.means.mean[0]), float(seen.means.std[0])
    bounds = [-claim.margin, claim.margin] if claim.direction == "equal" else [claim.minimum_effect]
    distance = min(abs(mean - bound) for bound in bounds)
    level = float(decision.level[0]) * seen.look.share
    total = _seeds_for(distance / std if std else math.inf, level)
    return None if total is None else max(1, total - num_units)


def _seeds_for(effect_size: float, level: float) -> int | None:
    """Seeds at which a two-sided t test finds an effect of this size with a power of 0.8."""
    from statsmodels.stats.power import TTestPower

    test = TTestPower()
    if not math.isfinite(effect_size) or test.power(effect_size, _MOST_SEEDS, level) < _POWER:
        return None
    if test.power(effect_size, FEWEST_SEEDS, level) >= _POWER:
        return FEWEST_SEEDS
    return math.ceil(float(test.solve_power(effect_size=effect_size, alpha=level, power=_POWER)))


def _why_undecided(claim: Claim, num_units: int, needed: int | None) -> str:
    if num_units < claim.most_seeds:
        more = f"the second look has {claim.max_seeds} seeds"
        return f"the interval of {claim.seeds} seeds does not decide; {more}"
    if needed is None:
        return "the effect is too close to the bound for any number of seeds"
    return f"the interval of the declared {claim.most_seeds} seeds does not decide"
