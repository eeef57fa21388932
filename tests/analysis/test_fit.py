"""Fits recover known laws, list every optimum, and refuse what they cannot answer."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from made_tables import COLUMNS, TRUTH, made_table
from scipy.optimize import brentq

from reptrain.analysis.fit import fit_law, score, seed_deviation
from reptrain.analysis.laws import find_law
from reptrain.analysis.points import Points, held_out, points_of
from reptrain.analysis.questions import Holdout
from reptrain.errors import AnalysisError


def points(table: pa.Table, law: str) -> Points:
    columns = {name: COLUMNS[name] for name in find_law(law).variables}
    return points_of(table, find_law(law), metric="loss", columns=columns)


@pytest.mark.parametrize("name", TRUTH)
def test_fit_recovers_a_law_without_noise(name: str) -> None:
    table = made_table(name, TRUTH[name], noise=0.0, seed=1)
    fit = fit_law(find_law(name), points(table, name), num_starts=12)
    for parameter, value in TRUTH[name].items():
        assert fit.values[parameter] == pytest.approx(value, rel=0.03), parameter
    assert fit.score.rmse_nats < 1e-4


def share_covered(trials: int, samples: int) -> float:
    """How often the interval of an exponent holds the truth."""
    law = find_law("power")
    truth = {"A": 20.0, "alpha": 0.1}
    covered = 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        x = np.repeat([1e6, 4e6, 1.6e7, 6.4e7, 2.56e8, 1e9], 5)
        loss = law.loss(truth, {"x": x}) * np.exp(rng.normal(0, 0.01, len(x)))
        made = points_of(pa.table({"x": x, "loss": loss}), law, metric="loss", columns={"x": "x"})
        fit = fit_law(law, made, num_starts=2, num_bootstraps=samples, seed=seed)
        exponent = next(p for p in fit.parameters if p.name == "alpha")
        assert exponent.low is not None and exponent.high is not None
        covered += exponent.low <= truth["alpha"] <= exponent.high
    return covered / trials


def test_fit_intervals_cover_the_truth() -> None:
    assert share_covered(trials=20, samples=40) >= 0.8


@pytest.mark.slow
def test_fit_intervals_cover_the_truth_as_often_as_they_say() -> None:
    # 95% nominal; percentile intervals of 30 runs are somewhat narrow.
    assert 0.88 <= share_covered(trials=100, samples=100) <= 0.99


def test_bootstrap_resamples_whole_clusters() -> None:
    # The noise is that of 8 clusters: by run the interval would be far too narrow.
    table = made_table("chinchilla", TRUTH["chinchilla"], noise=0.02, seed=3, clusters=8)
    fixed = {name: value for name, value in TRUTH["chinchilla"].items() if name != "E"}
    law = find_law("chinchilla")

    def width(made: Points) -> float:
        fit = fit_law(law, made, fixed=fixed, num_starts=2, num_bootstraps=60)
        low, high = fit.parameters[0].low, fit.parameters[0].high
        assert low is not None and high is not None
        return high - low

    by_cluster = points(table, "chinchilla")
    by_run = points(table.drop_columns("cluster"), "chinchilla")
    assert by_cluster.num_clusters == 8 and by_run.num_clusters == 120
    assert width(by_cluster) > 2 * width(by_run)


def test_fit_without_enough_clusters_has_no_intervals_and_says_so() -> None:
    table = made_table("chinchilla", TRUTH["chinchilla"], noise=0.01, seed=3, clusters=4)
    fit = fit_law(find_law("chinchilla"), points(table, "chinchilla"), num_starts=4, num_bootstraps=20)
    assert fit.num_bootstraps == 0 and fit.parameters[0].low is None
    assert any("4 clusters are too few" in warning for warning in fit.warnings)


def test_fit_lists_two_optima_unasked() -> None:
    # Half of the runs ask for R_P = 3, half for R_P = 100. Each half is blind to the other's value.
    law, truth = find_law("excess-saturating"), TRUTH["excess-saturating"]

    def made(size: float) -> Points:
        variables = {
            "N": np.repeat([size, 1e9], 6),
            "U": np.full(12, 1e9),
            "D": 1e9 * np.repeat([4.0, 101.0], 6),
        }
        wanted = [law.loss({**truth, "R_P": scale}, variables)[half] for scale, half in _HALVES]
        table = pa.table({**variables, "loss": np.concatenate(wanted)})
        return points_of(table, law, metric="loss", columns={name: name for name in "NDU"})

    def difference(log_size: float) -> float:
        runs = made(float(np.exp(log_size)))
        scores = [
            score(law, law.coordinates({**truth, "R_P": scale}), runs).objective for scale, _ in _HALVES
        ]
        return scores[0] - scores[1]

    runs = made(float(np.exp(brentq(difference, np.log(1e7), np.log(1e10)))))
    fixed = {name: value for name, value in truth.items() if name != "R_P"}
    fit = fit_law(law, runs, fixed=fixed, num_starts=32)
    assert sorted(round(optimum.values["R_P"]) for optimum in fit.optima) == [3, 100]
    assert fit.warnings == ["2 local optima lie within 1% of the best: the runs do not separate them."]


_HALVES = [(3.0, slice(0, 6)), (100.0, slice(6, 12))]


def test_fixed_parameters_keep_their_values() -> None:
    table = made_table("chinchilla", TRUTH["chinchilla"], noise=0.01, seed=5)
    fit = fit_law(find_law("chinchilla"), points(table, "chinchilla"), fixed={"alpha": 0.5}, num_starts=8)
    assert fit.values["alpha"] == 0.5
    assert [p.name for p in fit.parameters if p.fixed] == ["alpha"]


def test_decision_has_an_interval_and_minimizes_the_law() -> None:
    table = made_table("excess-saturating", TRUTH["excess-saturating"], noise=0.005, seed=7)
    law = find_law("excess-saturating")
    fit = fit_law(law, points(table, law.name), num_starts=8, num_bootstraps=30, budget=(1e20, 1e9))
    decision = fit.decision
    assert decision is not None and decision.low is not None and decision.high is not None
    size = decision.parameters * np.array([0.9, 1.0, 1.1])
    loss = law.loss(fit.values, {"N": size, "D": 1e20 / 6 / size, "U": 1e9})
    assert loss.argmin() == 1
    assert decision.epochs == pytest.approx(decision.tokens / 1e9)
    assert decision.low["epochs"] <= decision.epochs <= decision.high["epochs"]


@pytest.mark.parametrize("column", ["arm", "seed"])
def test_seed_deviation_is_that_between_seeds_of_an_arm(column: str) -> None:
    # The last two have the same x, but different unique tokens: they are no replicates.
    table = pa.table(
        {
            "x": [1.0, 1.0, 2.0, 2.0, 4.0, 4.0],
            "unique_tokens": [1, 1, 2, 2, 3, 4],
            "loss": [3.0, 3.2, 2.5, 2.7, 2.0, 1.7],
            column: ["a", "a", "b", "b", "c", "d"] if column == "arm" else [0, 1, 0, 1, 0, 0],
        }
    )
    law = find_law("power")
    made = points_of(table, law, metric="loss", columns={"x": "x"})
    assert seed_deviation(made) == pytest.approx(np.sqrt(0.02))
    assert (
        seed_deviation(points_of(table.drop_columns(column), law, metric="loss", columns={"x": "x"})) is None
    )


def test_holdout_is_scored_and_never_fitted() -> None:
    table = made_table("chinchilla", TRUTH["chinchilla"], noise=0.0, seed=9)
    everything = points(table, "chinchilla")
    held = held_out(everything, Holdout(largest=10))
    products = everything.variables["N"] * everything.variables["D"]
    assert held.sum() == 10 and products[held].min() >= products[~held].max()
    spoiled = np.where(held, 9.0, everything.loss)
    table = table.set_column(3, "loss", pa.array(spoiled))
    everything = points(table, "chinchilla")
    fit = fit_law(find_law("chinchilla"), everything.at(~held), num_starts=8, holdout=everything.at(held))
    assert fit.values["E"] == pytest.approx(1.8, rel=0.02)
    assert fit.holdout is not None and fit.holdout.score.rmse_nats > 5


def test_holdout_takes_all_seeds_of_an_arm() -> None:
    table = pa.table({"x": [1.0, 2.0, 4.0, 4.0], "arm": ["a", "b", "c", "c"], "loss": [4.0, 3.0, 2.0, 2.1]})
    made = points_of(table, find_law("power"), metric="loss", columns={"x": "x"})
    assert held_out(made, Holdout(largest=1)).tolist() == [False, False, True, True]


@pytest.mark.parametrize("value", [float("nan"), 0.0, -1.0, float("inf")])
@pytest.mark.parametrize("column", ["loss", "tokens"])
def test_points_of_refuses_values_without_a_logarithm(value: float, column: str) -> None:
    table = made_table("chinchilla", TRUTH["chinchilla"], noise=0.0, seed=9, num_runs=9)
    values = table[column].to_pylist()
    values[4] = value
    table = table.set_column(table.column_names.index(column), column, pa.array(values))
    with pytest.raises(AnalysisError, match=f"column {column}: must be finite and above zero .* in run-4"):
        points(table, "chinchilla")


def test_points_of_leaves_out_rows_without_a_loss() -> None:
    table = made_table("chinchilla", TRUTH["chinchilla"], noise=0.0, seed=9, num_runs=9)
    values = table["loss"].to_pylist()
    values[4] = None
    made = points(table.set_column(3, "loss", pa.array(values)), "chinchilla")
    assert len(made) == 8 and made.left_out == 1


def test_fit_refuses_too_few_settings() -> None:
    table = made_table("chinchilla", TRUTH["chinchilla"], noise=0.0, seed=9, num_runs=5)
    table = pa.concat_tables([table, table])
    with pytest.raises(AnalysisError, match="must be at least 6 distinct settings, for 5 free parameters"):
        fit_law(find_law("chinchilla"), points(table, "chinchilla"), num_starts=2)


@pytest.mark.parametrize(
    ("law", "column", "unknown"),
    [("chinchilla", "size", "E, A|A, E|alpha"), ("data-constrained", "unique", "R_D")],
)
def test_fit_refuses_a_law_that_the_runs_do_not_determine(law: str, column: str, unknown: str) -> None:
    """All runs have one size; or no run repeats."""
    table = made_table(law, TRUTH[law], noise=0.01, seed=9)
    same = [1e8] * table.num_rows if column == "size" else table["tokens"].to_pylist()
    table = table.set_column(table.column_names.index(column), column, pa.array(same))
    with pytest.raises(AnalysisError, match=f"runs that do not determine .*({unknown})"):
        fit_law(find_law(law), points(table, law), num_starts=4)


@pytest.mark.slow
def test_300_runs_with_1000_bootstraps_take_under_two_minutes() -> None:
    table = made_table("data-constrained", TRUTH["data-constrained"], noise=0.01, seed=2, num_runs=300)
    begun = time.process_time()
    fit = fit_law(
        find_law("data-constrained"),
        points(table, "data-constrained"),
        num_bootstraps=1000,
        budget=(1e21, 1e9),
    )
    assert time.process_time() - begun < 120
    assert fit.num_bootstraps == 1000 and fit.decision is not None and fit.decision.low is not None
    for parameter in fit.parameters:
        assert parameter.low is not None and parameter.high is not None
        assert parameter.low < parameter.value < parameter.high


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"fixed": {"alpha": -1.0}}, "fixed parameter alpha of chinchilla: must be from 0.01 to 3"),
        ({"fixed": {"gamma": 1.0}}, "fixed parameter of chinchilla: must be among E, A, B, alpha, beta"),
        ({"own_starts": [{"alpha": float("nan")}]}, "start alpha of chinchilla: must be from 0.01 to 3"),
        ({"num_starts": 10**12}, "starts: must be from 0 to 100,000"),
        ({"num_bootstraps": 10**12}, "bootstraps: must be from 0 to 100,000"),
        ({"budget": (float("nan"), 1e9)}, "compute: must be finite and above zero"),
        ({"budget": (1e20, 0.0)}, "unique tokens: must be finite and above zero"),
    ],
)
def test_fit_refuses_an_impossible_request(request_: dict[str, Any], message: str) -> None:
    table = made_table("chinchilla", TRUTH["chinchilla"], noise=0.01, seed=5)
    with pytest.raises(AnalysisError, match=message):
        fit_law(find_law("chinchilla"), points(table, "chinchilla"), **request_)
