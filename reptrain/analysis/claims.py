"""Verdicts on the claims of a study, from its table of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from pydantic import Field

from reptrain.analysis.decisions import ALPHA, Decision, Evidence, Verdict, decide, looks
from reptrain.analysis.effects import Effects, effects
from reptrain.analysis.intervals import DRAWS, Method
from reptrain.analysis.questions import FEWEST_SEEDS, Claim, sibling_metric
from reptrain.analysis.rows import Run, runs_of
from reptrain.config.base import Frozen

_POWER = 0.8
_MOST_SEEDS = 10_000


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

    claim: Claim
    judged: Judgment
    other_checkpoint: Judgment | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict by the claim's own metric."""
        return self.judged.verdict


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
    runs = runs_of(table)
    own = _judged(runs, claims, [claim.metric for claim in claims], alpha, num_draws)
    siblings = [sibling_metric(claim.metric) for claim in claims]
    known = [metric if metric in table.column_names else None for metric in siblings]
    others = _judged(
        runs,
        claims,
        [other or claim.metric for other, claim in zip(known, claims, strict=True)],
        alpha,
        num_draws,
    )
    return [
        ClaimResult(claim=claim, judged=judged, other_checkpoint=other if sibling else None)
        for claim, judged, other, sibling in zip(claims, own, others, known, strict=True)
    ]


def _judged(
    runs: Sequence[Run], claims: Sequence[Claim], metrics: Sequence[str], alpha: float, num_draws: int
) -> list[Judgment]:
    found = [effects(runs, claim, metric) for claim, metric in zip(claims, metrics, strict=True)]
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


def _judgment(claim: Claim, metric: str, found: Effects, decision: Decision) -> Judgment:
    verdict: Verdict = decision.verdict[0].item()
    shared = {
        "metric": metric,
        "verdict": verdict,
        "units": [
            UnitEffect(unit=unit, effect=value) for unit, value in zip(found.units, found.values, strict=True)
        ],
        "runs": list(found.runs),
        "excluded": dict(found.excluded),
    }
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


def _interval(claim: Claim, seen: Evidence, level: float) -> Mapping[str, float | None]:
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
        return f"the interval at {claim.seeds} seeds does not decide; the second look is at {claim.max_seeds}"
    if needed is None:
        return "the effect is too close to the bound for any number of seeds"
    return f"the interval does not decide at the declared {claim.most_seeds} seeds"
