"""Which verdict the seeds allow: declared looks, Holm's correction, equivalence.

All functions are vectorized over independent studies, so that their error rates can be simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reptrain.analysis.intervals import DRAWS, Floats, Method, SeedMeans
from reptrain.analysis.questions import FEWEST_SEEDS, Claim

Verdict = Literal["supported", "contradicted", "negligible", "undecided", "not run", "exploratory"]
ALPHA = 0.05


@dataclass(frozen=True)
class Look:
    """A declared look at the seeds.

    Attributes:
        seeds: Units it uses: the first ones.
        share: Its share of alpha.
    """

    seeds: int
    share: float


def looks(claim: Claim) -> list[Look]:
    """The looks that a claim declares."""
    if claim.max_seeds is None:
        return [Look(claim.seeds, 1.0)]
    return [
        Look(claim.seeds, claim.first_look_share),
        Look(claim.max_seeds, 1.0 - claim.first_look_share),
    ]


@dataclass(frozen=True)
class LookEvidence:
    """What one look says about a claim, in each study.

    The direction is always upward: with ``less`` the signs are flipped.

    Attributes:
        look: The look.
        means: Mean effects with their errors.
        is_equivalence: Whether the claim says that there is no relevant effect. A contradiction is then
            complete, and nothing else can be negligible.
        p_supported, p_contradicted, p_negligible: P values of the three verdicts, shape (studies,). Those of
            two-sided statements are doubled, so that all compare with the level itself.
    """

    look: Look
    means: SeedMeans
    is_equivalence: bool
    p_supported: Floats
    p_contradicted: Floats
    p_negligible: Floats

    @classmethod
    def of(
        cls, claim: Claim, look: Look, values: Floats, num_draws: int, fewest: int = FEWEST_SEEDS
    ) -> LookEvidence:
        """Test the first units of a claim.

        Args:
            claim: The claim.
            look: The look.
            values: Effects, shape (units, studies).
            num_draws: Bootstrap draws.
            fewest: Smallest number of units to accept.

        Source: Schuirmann 1987 (two one-sided tests of equivalence).
        """
        sign = -1.0 if claim.direction == "less" else 1.0
        means = SeedMeans.of(sign * values[: look.seeds], num_draws=num_draws, fewest=fewest)
        bound, margin = claim.minimum_effect, claim.margin
        equivalence = np.maximum(means.p_above(-margin), means.p_below(margin))
        if claim.direction == "equal":
            # A test of equivalence spends the whole level on the nearer bound; a difference has two sides.
            outside = np.minimum(means.p_above(margin), means.p_below(-margin))
            return cls(look, means, True, equivalence, 2 * outside, 2 * outside)
        return cls(look, means, False, 2 * means.p_above(bound), 2 * means.p_below(bound), 2 * equivalence)

    @property
    def p_complete(self) -> Floats:
        """The p value of a verdict after which nothing is left to test, shape (studies,).

        It is `supported` or `negligible`. A claim that is contradicted could still be negligible, so Holm's
        correction still counts it.
        """
        return np.minimum(1.0, np.minimum(self.p_supported, self.p_negligible) / self.look.share)

    @property
    def p(self) -> Floats:
        """The smallest p value of any verdict, shape (studies,)."""
        return np.minimum(self.p_complete, self.p_contradicted / self.look.share)

    def verdicts(self, level: Floats) -> NDArray[np.str_]:
        """The verdict in each study at its level, shape (studies,)."""
        level = level * self.look.share
        return np.select(
            [self.p_supported <= level, self.p_negligible <= level, self.p_contradicted <= level],
            ["supported", "contradicted" if self.is_equivalence else "negligible", "contradicted"],
            "undecided",
        )


@dataclass(frozen=True)
class Decision:
    """The verdict on a claim in each study, all arrays of shape (studies,).

    Attributes:
        verdict: The verdict.
        evidence: The evidence of each look that the seeds allow, empty if there are too few.
        used: Index of the look that decided, or of the last one.
        p: Smallest p value of any verdict at any declared look.
        p_adjusted: After Holm's correction over the family; a verdict needs one of at most alpha.
        level: The level at which the claim was tested after the correction, before its share.
    """

    verdict: NDArray[np.str_]
    evidence: list[LookEvidence]
    used: NDArray[np.int64]
    p: Floats
    p_adjusted: Floats
    level: Floats

    def method(self, study: int = 0) -> Method:
        """How the interval of a study was computed."""
        seen: LookEvidence = self.evidence[int(self.used[study])]
        return seen.means.method(study)


def decide(
    claims: Sequence[Claim],
    effects: Sequence[Floats | None],
    *,
    alpha: float = ALPHA,
    num_draws: int = DRAWS,
) -> list[Decision]:
    """Judge the claims of one family.

    The chance of any false verdict in the family is at most alpha. A verdict is false if it says
    "supported" and the true effect does not exceed the minimum effect, "contradicted" and it does, or
    "negligible" and it is as large as the margin or larger.

    Args:
        claims: All claims of the family, those without data included.
        effects: For each claim its effects, shape (units, studies); None if it has no data.
        alpha: Level of the family.
        num_draws: Bootstrap draws.

    Source: Holm 1979 (step-down), with directions as in Shaffer 1980; alpha is split over the declared looks
    (Bonferroni).
    """
    num_studies = next((values.shape[1] for values in effects if values is not None), 1)
    evidence = [
        [
            LookEvidence.of(claim, look, values, num_draws)
            for look in looks(claim)
            if len(values) >= look.seeds
        ]
        if values is not None
        else []
        for claim, values in zip(claims, effects, strict=True)
    ]
    complete = np.ones((len(claims), num_studies))
    for row, of_claim in zip(complete, evidence, strict=True):
        for seen in of_claim:
            np.minimum(row, seen.p_complete, out=row)
    level = holm(complete, alpha)[1]
    return [
        _decision(of_claim, level[index], alpha, missing=effects[index] is None)
        for index, of_claim in enumerate(evidence)
    ]


def holm(p: Floats, alpha: float) -> tuple[Floats, Floats]:
    """Holm's correction over the first axis.

    statsmodels' `multipletests` takes one family at a time and collects garbage in every call, which takes
    0.3 seconds; a test holds this function against it.

    Args:
        p: P values, shape (claims, studies).
        alpha: Level of a family.

    Returns:
        Adjusted p values, and the level at which each claim is tested, both of shape (claims, studies).
    """
    rank = np.argsort(np.argsort(p, 0, kind="stable"), 0, kind="stable")
    ordered = np.sort(p, 0) * np.arange(len(p), 0, -1)[:, None]
    adjusted = np.take_along_axis(np.minimum(1.0, np.maximum.accumulate(ordered, 0)), rank, 0)
    num_rejected = (adjusted <= alpha).sum(0)
    return adjusted, alpha / (len(p) - np.minimum(rank, num_rejected))


def _decision(evidence: list[LookEvidence], level: Floats, alpha: float, *, missing: bool) -> Decision:
    verdict = np.full(level.shape, "not run" if missing else "undecided", dtype="<U12")
    used = np.full(level.shape, len(evidence) - 1)
    p = np.ones_like(level)
    # The first look that decides is final: later seeds do not change its verdict.
    for index, seen in reversed([*enumerate(evidence)]):
        at_look = seen.verdicts(level)
        decided = at_look != "undecided"
        verdict[decided], used[decided] = at_look[decided], index
        p = np.minimum(p, seen.p)
    return Decision(verdict, evidence, used, p, np.minimum(1.0, p * alpha / level), level)
