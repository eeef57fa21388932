"""Claims on tables with known effects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from synthetic_studies import paired_rows, runs_table

from reptrain.analysis.claims import ClaimResult, judge
from reptrain.analysis.questions import Claim, questions_hash, sibling_metric
from reptrain.errors import AnalysisError


def claim(**fields: Any) -> Claim:
    """A claim that 2**14 unique tokens cost 0.1 nats over 2**20, with some fields replaced."""
    return Claim.model_validate(
        {
            "name": "repetition-hurts",
            "statement": "64 epochs cost at least 0.1 nats over one.",
            "contrast": {
                "treatment": {"data.unique_tokens": "2**14"},
                "control": {"data.unique_tokens": "2**20"},
            },
            "minimum_effect": 0.1,
            **fields,
        }
    )


def verdict_of(table: pa.Table, *claims: Claim) -> ClaimResult:
    return judge(table, claims or [claim()], num_draws=1999)[0]


@pytest.mark.parametrize(
    ("effect", "seeds", "fields", "verdict"),
    [
        (0.3, 5, {}, "supported"),
        (0.3, 8, {"seeds": 8}, "supported"),
        (-0.3, 5, {"direction": "less"}, "supported"),
        (0.3, 5, {"direction": "less"}, "contradicted"),
        (-0.3, 6, {"seeds": 6}, "contradicted"),
        (0.0, 6, {"seeds": 6}, "negligible"),
        (0.0, 6, {"seeds": 6, "negligible_below": 0.001}, "contradicted"),
        (0.0, 6, {"seeds": 6, "direction": "equal"}, "supported"),
        (0.3, 6, {"seeds": 6, "direction": "equal"}, "contradicted"),
        (0.1, 6, {"seeds": 6}, "undecided"),
        (0.3, 4, {}, "undecided"),
    ],
)
def test_judge_finds_the_known_effect(
    effect: float, seeds: int, fields: dict[str, Any], verdict: str
) -> None:
    result = verdict_of(runs_table(paired_rows(effect, seeds=seeds)), claim(**fields))
    assert result.verdict == verdict, result.judged
    assert result.judged.effect == pytest.approx(effect, abs=0.05)


def test_judge_reads_the_verdict_from_the_interval() -> None:
    judged = verdict_of(runs_table(paired_rows(0.3, seeds=6)), claim(seeds=6)).judged
    assert judged.method == "paired t"
    assert judged.coverage == pytest.approx(0.95)
    values = [unit.effect for unit in judged.units]
    # 2.570582 is the 97.5 % quantile of t with 5 degrees of freedom.
    half = 2.5705818 * np.std(values, ddof=1) / np.sqrt(6)
    assert judged.low == pytest.approx(np.mean(values) - half, rel=1e-6)
    assert judged.high == pytest.approx(np.mean(values) + half, rel=1e-6)


def test_judge_pairs_seeds_so_that_their_spread_cancels() -> None:
    # The seeds' own losses spread over a nat, ten times the effect.
    assert verdict_of(runs_table(paired_rows(0.2, seeds=6)), claim(seeds=6)).verdict == "supported"


def test_judge_judges_both_checkpoints() -> None:
    rows = paired_rows(0.3, seeds=5)
    for row in rows:
        row["loss_report_best_nats"] = 4.0 + 0.01 * row["seed"] * (row["set.data.unique_tokens"] == 2**14)
    result = verdict_of(runs_table(rows))
    assert result.judged.metric == "loss_report_final_nats"
    assert result.other_checkpoint is not None
    assert (result.verdict, result.other_checkpoint.verdict) == ("supported", "negligible")


def test_judge_waits_for_the_declared_seeds() -> None:
    judged = verdict_of(runs_table(paired_rows(0.3, seeds=5)), claim(seeds=6)).judged
    assert (judged.verdict, judged.seeds_needed) == ("undecided", 1)


def test_judge_uses_the_second_look_only_if_the_first_does_not_decide() -> None:
    two_looks = claim(seeds=6, max_seeds=10)
    first = verdict_of(runs_table(paired_rows(0.4, seeds=10)), two_looks).judged
    assert (first.verdict, first.look, first.seeds_used) == ("supported", 1, 6)
    assert first.coverage == pytest.approx(0.975)
    between = verdict_of(runs_table(paired_rows(0.12, seeds=7)), two_looks).judged
    assert (between.verdict, between.seeds_needed) == ("undecided", 3)
    second = verdict_of(runs_table(paired_rows(0.13, seeds=10)), two_looks).judged
    assert (second.verdict, second.look, second.method) == ("supported", 2, "paired t and bootstrap")


def test_judge_states_the_seeds_that_a_decision_needs() -> None:
    judged = verdict_of(runs_table(paired_rows(0.12, seeds=6)), claim(seeds=6)).judged
    assert judged.verdict == "undecided"
    assert judged.seeds_needed is not None
    values = [unit.effect for unit in judged.units]
    size = abs(np.mean(values) - 0.1) / np.std(values, ddof=1)
    # By the normal approximation, (1.96 + 0.84)**2 / size**2 seeds in all.
    assert judged.seeds_needed + 6 == pytest.approx((1.96 + 0.842) ** 2 / size**2, rel=0.35)


def test_judge_corrects_over_all_claims_of_the_family() -> None:
    # p of this effect lies between 0.05 / 8 and 0.05.
    table = runs_table(paired_rows(0.13, seeds=6))
    alone = verdict_of(table, claim(seeds=6)).judged
    assert alone.verdict == "supported"
    others = [
        claim(name=f"other-{i}", contrast={"treatment": "no such arm", "control": "none"}) for i in range(7)
    ]
    in_family = verdict_of(table, claim(seeds=6), *others).judged
    assert in_family.verdict == "undecided"
    assert in_family.p_adjusted == pytest.approx(8 * alone.p)
    elsewhere = [other.model_copy(update={"family": "secondary"}) for other in others]
    assert verdict_of(table, claim(seeds=6), *elsewhere).verdict == "supported"


def test_judge_says_not_run_without_runs() -> None:
    result = verdict_of(runs_table(paired_rows(0.3, seeds=5)), claim(where={"optimizer.lr": 1}))
    assert result.verdict == "not run"
    assert "optimizer.lr = 1" in result.judged.reason


def test_judge_leaves_out_runs_by_name() -> None:
    rows = paired_rows(0.3, seeds=6)
    rows[0]["audit_verdict"] = "not exact"
    rows[3]["status"] = "failed"
    rows[5]["loss_report_final_nats"] = float("nan")
    rows[7]["max_load"] = 3.0
    void = [{"column": "max_load", "above": 2.0, "reason": "imbalance"}]
    judged = verdict_of(runs_table(rows), claim(void=void)).judged
    assert judged.excluded["data.unique_tokens-1048576.seed-0"] == "audit: not exact"
    assert judged.excluded["data.unique_tokens-16384.seed-1"] == "failed"
    assert judged.excluded["data.unique_tokens-16384.seed-2"] == "loss_report_final_nats is missing"
    assert judged.excluded["data.unique_tokens-16384.seed-3"] == "imbalance"
    assert judged.excluded["seed 0"] == "no usable run of data.unique_tokens-1048576"
    assert [unit.unit for unit in judged.units] == ["seed 4", "seed 5"]
    assert (judged.verdict, judged.seeds_needed) == ("undecided", 3)


def test_judge_refuses_two_versions_of_the_numerics() -> None:
    rows = [{**row, "numerics_version": 1 + (row["seed"] > 2)} for row in paired_rows(0.3, seeds=5)]
    with pytest.raises(AnalysisError, match="numerics_version"):
        verdict_of(runs_table(rows))


def test_judge_compares_losses_of_one_measure_only() -> None:
    rows = paired_rows(0.3, seeds=5)
    for row in rows:
        row["measure"] = "a" if row["set.data.unique_tokens"] == 2**20 else "b"
    result = verdict_of(runs_table(rows))
    assert (result.verdict, "measure" in result.judged.reason) == ("not run", True)


def test_judge_takes_seeds_that_share_a_prefix_as_one() -> None:
    rows = paired_rows(0.3, seeds=6)
    for row in rows:
        row["cluster"] = f"trunk-{row['seed'] // 2}"
    judged = verdict_of(runs_table(rows)).judged
    assert [unit.unit for unit in judged.units] == ["seeds 0, 1", "seeds 2, 3", "seeds 4, 5"]
    assert judged.verdict == "undecided"


def test_judge_takes_equal_differences_by_a_sign_test() -> None:
    rows = paired_rows(0.3, seeds=5, sd=0.0)
    # Two-sided, five seeds on one side have p = 1/16.
    assert verdict_of(runs_table(rows)).verdict == "undecided"
    rows = paired_rows(0.3, seeds=6, sd=0.0)
    judged = verdict_of(runs_table(rows), claim(seeds=6)).judged
    assert (judged.verdict, judged.method) == ("supported", "sign test")
    assert judged.p == pytest.approx(2**-5)


def with_keys(rows: list[dict[str, Any]], **keys: Any) -> list[dict[str, Any]]:
    return [{**row, **{f"set.{key}": value for key, value in keys.items()}} for row in rows]


def test_judge_pairs_runs_that_agree_in_the_other_keys() -> None:
    rows = with_keys(paired_rows(0.3, seeds=5), layers=2) + with_keys(paired_rows(0.5, seeds=5), layers=4)
    assert verdict_of(runs_table(rows)).judged.effect == pytest.approx(0.4, abs=0.05)
    tied = [{**row, "set.epochs": 2**20 // row["set.data.unique_tokens"]} for row in rows]
    result = verdict_of(runs_table(tied))
    assert result.verdict == "not run"
    assert "epochs" in result.judged.reason
    contrast = claim().contrast.model_dump() | {"free": ["epochs"]}
    assert verdict_of(runs_table(tied), claim(contrast=contrast)).judged.effect == pytest.approx(
        0.4, abs=0.05
    )


def test_judge_value_is_the_metric_of_the_treatment_alone() -> None:
    gains = {seed: 0.2 + 0.01 * seed for seed in range(5)}
    rows = [{**row, "average_gain_nats": gains[row["seed"]]} for row in paired_rows(0.3, seeds=5)]
    for row in rows:
        if row["set.data.unique_tokens"] == 2**20:
            row["average_gain_nats"] = -9.0
    contrast = {"kind": "value", "treatment": {"data.unique_tokens": "2**14"}}
    judged = verdict_of(runs_table(rows), claim(metric="average_gain_nats", contrast=contrast)).judged
    assert judged.verdict == "supported"
    assert [unit.effect for unit in judged.units] == [*gains.values()]
    with pytest.raises(ValidationError, match="control"):
        claim(contrast=contrast | {"control": {"data.unique_tokens": "2**20"}})


def test_judge_interaction_is_a_difference_of_differences() -> None:
    rows = with_keys(paired_rows(0.3, seeds=5), layers=2) + with_keys(
        paired_rows(0.7, seeds=5, sd=0.05), layers=4
    )
    contrast = {"kind": "interaction", "high": {"layers": 4}, "low": {"layers": 2}}
    result = verdict_of(runs_table(rows), claim(contrast=claim().contrast.model_dump() | contrast))
    assert result.judged.effect == pytest.approx(0.4, abs=0.05)
    assert result.verdict == "supported"


def test_judge_slope_is_the_change_per_factor() -> None:
    rows = []
    for step, parameters in enumerate((100_000, 400_000, 1_600_000)):
        part = with_keys(paired_rows(0.2 + 0.15 * step, seeds=5, sd=0.02 + 0.01 * step), layers=2 * step + 2)
        rows += [{**row, "parameters_nonembedding": parameters} for row in part]
    contrast = {"kind": "slope", "per": "parameters_nonembedding", "factor": 4}
    result = verdict_of(runs_table(rows), claim(contrast=claim().contrast.model_dump() | contrast))
    assert result.judged.effect == pytest.approx(0.15, abs=0.02)
    assert result.verdict == "supported"
    doubling = claim().contrast.model_dump() | contrast | {"factor": 2}
    halved = verdict_of(runs_table(rows), claim(contrast=doubling))
    assert halved.judged.effect == pytest.approx(result.judged.effect / 2)


def test_judge_tunes_each_side_on_the_selection_split() -> None:
    rows = []
    for rate, cost in ((0.001, 0.0), (0.01, 0.5)):
        for row in paired_rows(0.3, seeds=5):
            treated = row["set.data.unique_tokens"] == 2**14
            # The treatment prefers the higher rate, the control the lower one.
            extra = (0.5 - cost) if treated else cost
            losses = {key: row[key] + extra for key in row if key.startswith("loss")}
            rows.append({**row, **losses, "set.lr": rate})
    fixed = verdict_of(runs_table(rows))
    assert fixed.judged.effect == pytest.approx(0.3, abs=0.05)
    tuned = claim(contrast=claim().contrast.model_dump() | {"tuned": {"over": ["lr"]}})
    judged = verdict_of(runs_table(rows), tuned).judged
    assert judged.effect == pytest.approx(0.3, abs=0.05)
    assert len(judged.runs) == 10
    rates = {(name.split(".lr-")[0], name.split(".lr-")[1].split(".seed")[0]) for name in judged.runs}
    assert rates == {("data.unique_tokens-1048576", "0.001"), ("data.unique_tokens-16384", "0.01")}


def sweep_rows(best: float, *, model: str, seeds: int = 6) -> list[dict[str, Any]]:
    """Losses over dropout rates, lowest at `best`, which moves a little with the seed."""
    moves = np.random.default_rng(3).normal(0, 0.01, seeds)
    return [
        {
            "seed": seed,
            "set.model": model,
            "set.dropout": rate,
            **dict.fromkeys(
                ("loss_report_final_nats", "loss_select_best_nats"), 4 + 5 * (rate - best - moves[seed]) ** 2
            ),
        }
        for seed in range(seeds)
        for rate in (0.0, 0.1, 0.2, 0.3, 0.4)
    ]


def test_judge_optimum_is_the_shift_of_the_best_value() -> None:
    small = sweep_rows(0.1, model="small")
    noise = np.random.default_rng(5).normal(0, 1e-3, len(small))
    for row, error in zip(small, noise, strict=True):
        row["loss_report_final_nats"] += error
    table = runs_table([*small, *sweep_rows(0.25, model="large")])
    contrast = {
        "kind": "optimum",
        "treatment": {"model": "large"},
        "control": {"model": "small"},
        "over": "dropout",
    }
    result = verdict_of(table, claim(contrast=contrast, minimum_effect=0.05, seeds=6))
    assert result.judged.effect == pytest.approx(0.15, abs=0.02)
    assert result.verdict == "supported"


def test_judge_regret_is_the_cost_of_the_proxys_pick() -> None:
    contrast = {
        "kind": "regret",
        "proxy": {"model": "moe"},
        "target": {"model": "dense"},
        "tuned": {"over": ["dropout"]},
    }
    near = runs_table([*sweep_rows(0.2, model="dense"), *sweep_rows(0.22, model="moe")])
    small = claim(contrast=contrast, direction="equal", minimum_effect=0.05, seeds=6)
    result = verdict_of(near, small)
    assert (result.verdict, result.judged.effect, result.judged.method) == ("supported", 0.0, "sign test")
    far = runs_table([*sweep_rows(0.0, model="dense"), *sweep_rows(0.4, model="moe")])
    result = verdict_of(far, small)
    assert result.judged.effect == pytest.approx(5 * 0.4**2, rel=0.2)
    assert result.verdict == "contradicted"


def test_claim_refuses_what_cannot_be_judged() -> None:
    for fields in (
        {"seeds": 4},
        {"seeds": 6, "max_seeds": 6},
        {"direction": "equal", "minimum_effect": 0.0},
        {
            "contrast": claim().contrast.model_dump()
            | {"tuned": {"over": ["lr"], "by": "loss_report_best_nats"}}
        },
        {"void": [{"column": "max_load"}]},
        {"unknown": 1},
    ):
        with pytest.raises(ValueError, match=r"validation error"):
            claim(**fields)


def test_questions_hash_depends_on_every_field_but_not_on_defaults() -> None:
    one = questions_hash([claim()])
    assert questions_hash([claim(direction="greater", family="primary")]) == one
    assert questions_hash([claim(minimum_effect=0.11)]) != one


def test_sibling_metric_swaps_the_checkpoint() -> None:
    assert sibling_metric("loss_report_best_nats") == "loss_report_final_nats"
    assert sibling_metric("gap_nats") is None


def test_judge_uses_main_runs_unless_a_claim_names_the_role() -> None:
    rows = [row | {"role": "main"} for row in paired_rows(0.3, seeds=5)]
    tuning = [row | {"role": "tune", "seed": 1000 + row["seed"]} for row in paired_rows(-0.3, seeds=5)]
    both = judge(runs_table([*rows, *tuning]), [claim(), claim(name="tuning", where={"role": "tune"})])
    assert [len(result.judged.units) for result in both] == [5, 5]
    assert [result.judged.effect for result in both] == pytest.approx([0.3, -0.3], abs=0.05)
