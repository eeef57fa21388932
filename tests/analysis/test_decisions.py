"""Error rates of the verdicts, and the pieces that they are made of."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from reptrain.analysis.decisions import decide, holm
from reptrain.analysis.intervals import SeedMeans
from reptrain.analysis.questions import Claim

NUM_STUDIES = 2_000
SD, MINIMUM = 0.03, 0.1
# The claims of a study and their true effects: several lie on a bound, where a false verdict is most likely.
TRUE_EFFECTS = [
    ("greater", MINIMUM),
    ("greater", 0.0),
    ("greater", 0.3),
    ("less", -MINIMUM),
    ("less", MINIMUM),
    ("equal", MINIMUM),
    ("equal", 0.0),
    ("greater", -MINIMUM),
]


def claims_of_family(seeds: int, max_seeds: int | None) -> list[Claim]:
    return [
        Claim.model_validate(
            {
                "name": f"claim-{index}",
                "statement": "A claim of a synthetic study.",
                "contrast": {"treatment": "a", "control": "b"},
                "direction": direction,
                "minimum_effect": MINIMUM,
                "seeds": seeds,
                "max_seeds": max_seeds,
            }
        )
        for index, (direction, _) in enumerate(TRUE_EFFECTS)
    ]


def is_false(direction: str, effect: float) -> set[str]:
    """The verdicts that are false for this true effect."""
    if direction == "equal":
        return {"contradicted"} if abs(effect) < MINIMUM else {"supported"}
    upward = -effect if direction == "less" else effect
    false = {"contradicted"} if upward > MINIMUM else {"supported"}
    if upward == MINIMUM:
        false = {"supported", "contradicted"}
    return false | ({"negligible"} if abs(effect) >= MINIMUM else set())


@pytest.mark.parametrize(("seeds", "max_seeds"), [(5, None), (6, 10), (8, None)])
def test_false_verdicts_stay_under_their_level(seeds: int, max_seeds: int | None) -> None:
    rng = np.random.default_rng(20)
    effects = [effect + rng.normal(0, SD, (max_seeds or seeds, NUM_STUDIES)) for _, effect in TRUE_EFFECTS]
    decisions = decide(claims_of_family(seeds, max_seeds), effects, num_draws=999)
    false = np.zeros(NUM_STUDIES, bool)
    for (direction, effect), decision in zip(TRUE_EFFECTS, decisions, strict=True):
        false |= np.isin(decision.verdict, [*is_false(direction, effect)])
    # Two standard errors above 5 % of 2,000 studies.
    assert false.mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / NUM_STUDIES), false.mean()
    # And the verdicts are not merely all undecided: the large effect is found, and the absent one.
    large, absent = decisions[2].verdict, decisions[6].verdict
    assert (large == "supported").mean() > 0.95
    assert (absent == "supported").mean() > 0.5


def test_false_verdicts_exceed_the_level_without_the_correction() -> None:
    # The simulation can fail: each claim alone at 5 % lets a family of eight err far more often.
    rng = np.random.default_rng(20)
    effects = [effect + rng.normal(0, SD, (6, NUM_STUDIES)) for _, effect in TRUE_EFFECTS]
    false = np.zeros(NUM_STUDIES, bool)
    for claim, values, (direction, effect) in zip(
        claims_of_family(6, None), effects, TRUE_EFFECTS, strict=True
    ):
        (decision,) = decide([claim], [values])
        false |= np.isin(decision.verdict, [*is_false(direction, effect)])
    assert false.mean() > 0.1


def test_holm_agrees_with_statsmodels() -> None:
    families = np.random.default_rng(8).uniform(size=(40, 6)) ** 4
    adjusted, level = holm(families.T, 0.05)
    # statsmodels collects garbage in every call.
    gc.freeze()
    try:
        expected = [multipletests(p, 0.05, method="holm")[:2] for p in families]
    finally:
        gc.unfreeze()
    assert pytest.approx(np.array([corrected for _, corrected in expected])) == adjusted.T
    # Each claim's own level gives the same decision.
    assert np.array_equal(families <= level.T, [rejected for rejected, _ in expected])


def test_seed_means_interval_covers_the_mean_at_its_level() -> None:
    rng = np.random.default_rng(4)
    for seeds in (5, 8):
        means = SeedMeans.of(rng.normal(1.0, 2.0, (seeds, 2_000)), num_draws=799)
        low, high = means.interval(np.full(2_000, 0.1))
        outside = ((low > 1.0) | (high < 1.0)).mean()
        assert 0.06 < outside < 0.1 + 3 * np.sqrt(0.09 / 2_000)


def test_seed_means_tests_agree_with_their_interval() -> None:
    values = np.random.default_rng(5).normal(0.1, 0.1, (9, 400))
    means = SeedMeans.of(values, num_draws=799)
    low, high = means.interval(np.full(400, 0.1))
    assert np.array_equal(low > 0, means.p_above(0.0) <= 0.05)
    assert np.array_equal(high < 0, means.p_below(0.0) <= 0.05)


def test_seed_means_equivalence_is_that_of_statsmodels() -> None:
    values = np.random.default_rng(6).normal(0.0, 0.03, 6)
    means = SeedMeans.of(values)
    both = max(means.p_above(-0.05)[0], means.p_below(0.05)[0])
    assert both == pytest.approx(DescrStatsW(values).ttost_mean(-0.05, 0.05)[0])
