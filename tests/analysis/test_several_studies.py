"""Claims of several studies judged together, and exploratory claims."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from synthetic_studies import paired_rows, runs_table

from reptrain.analysis.claims import StudyClaims, judge, judge_studies
from reptrain.analysis.questions import Claim
from reptrain.errors import AnalysisError

FEW = 199


def claim(**fields: Any) -> Claim:
    """A claim that 2**14 unique tokens cost 0.1 nats over 2**20, with some fields replaced."""
    sides = {"treatment": {"data.unique_tokens": 2**14}, "control": {"data.unique_tokens": 2**20}}
    given = {"name": "c", "statement": "s", "contrast": sides, "minimum_effect": 0.1, "seeds": 6}
    return Claim.model_validate(given | fields)


def clear_and_weak() -> list[StudyClaims]:
    """Two studies: p of the second lies between 0.05 / 2 and 0.05."""
    weak = paired_rows(0.12, seeds=6)
    return [
        StudyClaims("clear", runs_table(paired_rows(0.4, seeds=6)), [claim()]),
        StudyClaims("weak", runs_table(weak), [claim(minimum_effect=0.105)]),
    ]


def test_a_family_over_several_studies_is_one_family_for_holm() -> None:
    first, second = clear_and_weak()
    table = pa.concat_tables([first.table, second.table])
    assert table.num_rows == 24
    alone = judge(second.table, second.claims, num_draws=FEW)[0].judged
    waiting = [StudyClaims(f"later-{index}", None, [claim()]) for index in range(3)]
    results = judge_studies([first, second, *waiting], num_draws=FEW)
    assert [result.study for result in results] == ["clear", "weak", "later-0", "later-1", "later-2"]
    assert [result.verdict for result in results] == [
        "supported", "undecided", "not run", "not run", "not run",
    ]  # fmt: skip
    assert results[2].judged.reason == "the study has no table of runs yet"
    together = results[1].judged
    assert (together.effect, together.p) == (alone.effect, alone.p)
    # After the clear claim is decided, four are left.
    assert together.p_adjusted == pytest.approx(min(1.0, 4 * alone.p))


def test_families_of_different_names_are_corrected_apart() -> None:
    first, second = clear_and_weak()
    other = second._replace(claims=[claim(minimum_effect=0.105, family="secondary")])
    together = judge_studies([first, other], num_draws=FEW)[1].judged
    alone = judge(second.table, other.claims, num_draws=FEW)[0].judged
    assert together == alone


def test_a_claim_compares_runs_of_two_studies_by_the_key_study() -> None:
    # The same arms, run names and seeds in both studies, which differ by 0.3 nats; seed 5 is in one only.
    noise = np.random.default_rng(1).normal(0, 0.02, 12)
    dense = [{"seed": s, "set.lr": 0.1, "loss_report_final_nats": 4.0 + 0.2 * s} for s in range(5)]
    sparse = [
        {"seed": s, "set.lr": 0.1, "loss_report_final_nats": 4.3 + 0.2 * s + noise[s]} for s in range(6)
    ]
    across = claim(seeds=5, contrast={"treatment": {"study": "sparse"}, "control": {"study": "dense"}})
    studies = [
        StudyClaims("dense", runs_table(dense), []),
        StudyClaims("sparse", runs_table(sparse), [across]),
    ]
    judged = judge_studies(studies, num_draws=FEW)[0].judged
    assert judged.verdict == "supported"
    assert judged.effect == pytest.approx(0.3 + noise[:5].mean())
    assert judged.excluded == {"seed 5": "no usable run of lr-0.1"}
    assert {name.partition("/")[0] for name in judged.runs} == {"dense", "sparse"}
    alone = judge_studies(studies[1:], num_draws=FEW)[0].judged
    assert (alone.verdict, alone.reason) == ("not run", "no run has study = sparse")


def test_studies_of_one_name_are_refused() -> None:
    first, second = clear_and_weak()
    with pytest.raises(AnalysisError, match="must have different names, but got clear, 2 times"):
        judge_studies([first, second._replace(name="clear")])


@pytest.mark.parametrize(
    ("effect", "seeds", "words"),
    [
        (0.4, 4, "agrees with the claim"),
        (-0.4, 4, "disagrees with the claim"),
        (0.0, 6, "within the margin"),
        (0.1, 4, "neither agrees nor disagrees"),
    ],
)
def test_an_exploratory_claim_gets_an_interval_and_no_verdict(effect: float, seeds: int, words: str) -> None:
    exploratory = claim(seeds=4, family="exploratory")
    table = runs_table(paired_rows(effect, seeds=seeds))
    judged = judge(table, [exploratory, claim()], num_draws=FEW)[0].judged
    assert (judged.verdict, judged.seeds_used, judged.coverage) == ("exploratory", seeds, 0.95)
    assert words in judged.reason
    values = [unit.effect for unit in judged.units]
    # Quantiles of t at 97.5 % with 3 and 5 degrees of freedom.
    half = {4: 3.1824463, 6: 2.5705818}[seeds] * np.std(values, ddof=1) / np.sqrt(seeds)
    assert judged.low == pytest.approx(np.mean(values) - half, rel=1e-6)
    assert judged.high == pytest.approx(np.mean(values) + half, rel=1e-6)


def test_exploratory_claims_do_not_count_in_the_correction() -> None:
    table = runs_table(paired_rows(0.13, seeds=6))
    others = [claim(name=f"e-{index}", family="exploratory", seeds=4) for index in range(7)]
    assert judge(table, [claim(), *others], num_draws=FEW)[0] == judge(table, [claim()], num_draws=FEW)[0]


def test_one_exploratory_seed_has_an_effect_and_no_interval() -> None:
    table = runs_table(paired_rows(0.3, seeds=1))
    judged = judge(table, [claim(seeds=4, family="exploratory")])[0].judged
    assert (judged.verdict, judged.low, judged.reason) == ("exploratory", None, "one seed has no interval")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 4}, "seeds must be 5 or more; 4 is not"),
        ({"seeds": 1, "family": "exploratory"}, "greater than or equal to 2"),
        ({"family": "exploratory", "max_seeds": 10}, "max_seeds must not be set"),
    ],
)
def test_few_seeds_need_the_family_exploratory(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        claim(**fields)
