"""A cheap model as a stand-in: on sweeps with known optima, and on public runs."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from synthetic_studies import runs_table
from typer.main import get_command

from reptrain.analysis.proxy import Sweep, compare, judge_proxy, pair_up, read_sweeps, sweeps_of_claim
from reptrain.analysis.questions import Claim
from reptrain.cli import app
from reptrain.errors import AnalysisError

RATES = [2.0**power for power in range(-12, -4)]
PUBLIC = Path(__file__).parents[3] / "shared" / "data" / "tables"


def losses(best: float) -> dict[float, float]:
    """A parabola over the logarithm of the rate with its lowest point at `best`."""
    return {rate: 3.0 + 0.02 * (math.log2(rate) - math.log2(best)) ** 2 for rate in RATES}


def sweep(best: float, *, name: str = "m", cost: float = 8.0) -> Sweep:
    return Sweep(name, "u", losses(best), cost, cost / 8, {"tokens": 1e9})


def test_compare_finds_the_shift_and_what_the_pick_costs() -> None:
    pair = compare(sweep(2.0**-9, cost=2.0), sweep(2.0**-7.5))
    assert pair.shift_doublings == pytest.approx(-1.5)
    assert pair.proxy_pick == 2.0**-9
    assert pair.regret == pytest.approx(0.02 * 1.5**2 - 0.02 * 0.5**2)
    assert (pair.num_common, pair.outside) == (8, False)
    # The proxy's sweep costs 2, one run of the target 1, the target's sweep 8.
    assert pair.cost_ratio == pytest.approx(3 / 8)


def test_compare_ranks_the_common_values() -> None:
    assert compare(sweep(2.0**-8), sweep(2.0**-8)).rank_correlation == pytest.approx(1.0)
    assert compare(sweep(2.0**-13), sweep(2.0**-4)).rank_correlation == pytest.approx(-1.0)


def test_compare_takes_values_that_differ_by_rounding_as_one() -> None:
    rounded = Sweep("m", "u", {rate * 1.001: loss for rate, loss in losses(2.0**-8).items()}, 1, 1, {})
    assert compare(rounded, sweep(2.0**-8)).num_common == 8


def test_judge_proxy_counts_pairs_of_one_unit_once() -> None:
    pairs = [
        compare(sweep(2.0**-8), sweep(2.0**-8)).model_copy(update={"unit": f"u{i % 3}"}) for i in range(9)
    ]
    answer = judge_proxy(pairs, setting="lr", most_regret=0.01, most_shift=0.5, metric="nats")
    assert len(answer.regret.judged.units) == 3
    assert answer.regret.verdict == "undecided"
    with pytest.raises(AnalysisError, match="pairs of proxy and target"):
        judge_proxy([], setting="lr", most_regret=0.01, most_shift=0.5, metric="nats")


def table_of(best: float, *, size: int, tokens: int) -> pa.Table:
    rows = [
        {"size": size, "tokens": tokens, "lr": rate, "batch": batch, "loss": loss + 0.1 * batch}
        for rate, loss in losses(best).items()
        for batch in (0, 1)
    ]
    return pa.Table.from_pylist(rows)


def test_read_sweeps_takes_the_best_over_other_settings() -> None:
    table = pa.concat_tables([table_of(2.0**-8, size=10, tokens=100), table_of(2.0**-7, size=20, tokens=300)])
    found = read_sweeps(
        table, over="lr", metric="loss", groups=["size", "tokens"], unit="size", cost="6 * size * tokens",
        match={"tokens": "tokens", "size": "size"},
    )  # fmt: skip
    assert [one.pick for one in found] == [2.0**-8, 2.0**-7]
    assert found[0].losses == pytest.approx(losses(2.0**-8))
    assert (found[0].cost, found[0].cost_of_one) == (16 * 6000, 6000)
    assert len(pair_up(found, found, within={"tokens": 1.5}, nearest=None)) == 2
    assert len(pair_up(found, found, within={"tokens": 4}, nearest=None)) == 4
    assert len(pair_up(found, found, within={"tokens": 4}, nearest="size")) == 2
    with pytest.raises(AnalysisError, match="table of sweeps"):
        read_sweeps(table, over="rate", metric="loss", groups=["size"], unit="size", cost="1", match={})


def test_sweeps_of_claim_are_means_over_the_seeds() -> None:
    rows = [
        {
            "seed": seed,
            "set.model": model,
            "set.dropout": rate,
            "train_flops": flops,
            "loss_report_final_nats": 4 + (rate - best) ** 2 + 0.01 * seed,
            "loss_select_best_nats": 4 + (rate - best) ** 2,
        }
        for model, best, flops in (("moe", 0.2, 1.0), ("dense", 0.3, 10.0))
        for rate in (0.0, 0.1, 0.2, 0.3)
        for seed in range(2)
    ]
    contrast = {
        "kind": "regret",
        "proxy": {"model": "moe"},
        "target": {"model": "dense"},
        "tuned": {"over": ["dropout"]},
    }
    fields = {"name": "stand-in", "statement": "s", "contrast": contrast, "minimum_effect": 0.05}
    claim = Claim.model_validate({**fields, "direction": "equal"})
    pair = compare(*sweeps_of_claim(runs_table(rows), claim))
    assert (pair.proxy_pick, pair.target_best, pair.shift_doublings) == (0.2, 0.3, None)
    assert pair.regret == pytest.approx(0.1**2)
    assert pair.cost_ratio == pytest.approx((8 * 1 + 2 * 10) / 80)


@pytest.mark.skipif(not PUBLIC.exists(), reason="the public tables of learning rates are not here")
def test_study_proxy_judges_the_public_runs() -> None:
    command = [
        "study", "proxy", str(PUBLIC / "steplaw_moe.csv"), str(PUBLIC / "steplaw_dense.csv"),
        "--metric", "smooth_loss", "--tokens", "tokens",
        "--proxy-groups", "moe_name,tokens", "--proxy-size", "Na_as_published",
        "--target-groups", "non_embedding_params,tokens", "--target-size", "non_embedding_params",
    ]  # fmt: skip
    shown = CliRunner().invoke(get_command(app), command)
    assert shown.exit_code == 0, shown.output
    *pairs, shift, regret = shown.output.splitlines()
    assert len(pairs) == 44
    assert shift.startswith("best-values-agree: contradicted, −1.7")
    assert regret.startswith("pick-is-good: undecided, 0.017")
