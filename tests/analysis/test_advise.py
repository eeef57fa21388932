"""Advice from public constants and from the user's runs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from made_tables import COLUMNS, TRUTH, made_table

from reptrain.analysis.advise import Evidence, advice_text, advise, fit_evidence
from reptrain.analysis.answer import FitOptions
from reptrain.analysis.decision import Held, best_for_budget
from reptrain.analysis.laws import find_law
from reptrain.errors import AnalysisError

FEW_STARTS = FitOptions(num_starts=8, num_bootstraps=20)


def test_advice_for_100m_tokens_is_near_the_best_public_run() -> None:
    """The best of the public runs on 100M tokens has 146M parameters and 59 epochs."""
    advice = advise(1e8, 1e19)
    assert advice.parameters == pytest.approx(146e6, rel=0.15)
    assert advice.epochs == pytest.approx(59, rel=0.15)
    assert advice.low["loss_nats"] < 3.718 < advice.high["loss_nats"]
    assert advice.compute_flops < 0.7e19, "excess repeats hurt, so part of the budget is left"
    assert max(advice.extrapolation.values()) == 1.0


def test_advice_says_what_it_rests_on_and_what_it_holds_fixed() -> None:
    advice = advise(1e9, 1e24)
    assert advice.basis.from_runs == [] and "P" in advice.basis.from_published
    text = advice_text(advice)
    assert "fitted to your runs: nothing" in text and "held fixed: compute" in text
    assert advise(1e12, 1e26).extrapolation["U"] == pytest.approx(1e12 / 1.78e11)


def test_proxy_has_the_repetition_rate_of_the_target() -> None:
    advice = advise(1e9, 1e21)
    proxy = advice.proxy
    assert proxy.tokens / proxy.unique_tokens == pytest.approx(advice.epochs)
    assert proxy.tokens / proxy.parameters == pytest.approx(advice.tokens / advice.parameters)
    assert proxy.unique_tokens < advice.unique_tokens


@pytest.mark.parametrize("held", [Held("tokens", 2e9), Held("tokens per parameter", 20.0)])
def test_advice_that_holds_tokens_is_the_minimum_over_the_sizes(held: Held) -> None:
    advice = advise(1e8, 1e19, held=held)
    law = find_law("excess-saturating")
    constants = advice.basis.constants
    sizes = np.geomspace(1e7, held.largest(1e19), 2000)
    tokens = held.tokens(sizes)
    loss = law.loss(constants, {"N": sizes, "D": tokens, "U": np.minimum(1e8, tokens)})
    assert advice.loss_nats == pytest.approx(loss.min(), abs=1e-6)
    assert advice.parameters == pytest.approx(sizes[loss.argmin()], rel=0.02)
    assert advice.compute_flops <= 1e19 * (1 + 1e-9)
    free = advise(1e8, 1e19)
    assert advice.loss_nats >= free.loss_nats, "more is held, so the loss is not lower"
    ratio = advice.tokens if held.what == "tokens" else advice.tokens / advice.parameters
    assert ratio == pytest.approx(held.value)
    assert f"held fixed: {'D =' if held.what == 'tokens' else 'D/N ='}" in advice_text(advice)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_advice_refuses_to_hold_an_impossible_value(value: float) -> None:
    with pytest.raises(AnalysisError, match="tokens per parameter: must be finite"):
        advise(1e8, 1e19, held=Held("tokens per parameter", value))


def test_more_data_and_compute_never_hurt() -> None:
    for unique, compute in ((1e8, 1e19), (1e9, 1e20), (1e11, 1e22)):
        assert min(entry.gain_nats for entry in advise(unique, compute).outlook) > -1e-3


def test_economical_run_is_cheaper_and_nearly_as_good() -> None:
    advice = advise(1e8, 1e19)
    assert advice.economical["compute_flops"] < advice.compute_flops
    assert advice.economical["loss_nats"] <= 1.01 * advice.loss_nats


@pytest.mark.parametrize(
    ("epochs", "words"),
    [
        (1.0, ("MoE:", "0: at one epoch any dropout hurts")),
        (10.0, ("MoE:", "0.1")),
        (20.0, ("undecided", "0.2 to 0.3")),
        (60.0, ("dense:", "0.2 to 0.3")),
    ],
)
def test_hints_follow_the_number_of_epochs(epochs: float, words: tuple[str, str]) -> None:
    from reptrain.analysis.hints import hints

    sparsity, dropout, *_ = hints(epochs)
    assert sparsity.advice.startswith(words[0]) and dropout.advice.startswith(words[1])


def evidence(num_runs: int) -> Evidence:
    truth = TRUTH["excess-saturating"]
    table = made_table("excess-saturating", truth, noise=0.003, seed=4, num_runs=num_runs)
    return Evidence(table, "loss", COLUMNS)


def test_advice_from_many_runs_fits_the_whole_law() -> None:
    fit = fit_evidence(evidence(60), 1e9, 1e20, FEW_STARTS)
    advice = advise(1e9, 1e20, fit=fit, samples=fit.num_bootstraps)
    assert not advice.basis.from_published and len(advice.basis.from_runs) == 8
    law = find_law("excess-saturating")
    best = best_for_budget(law, TRUTH["excess-saturating"], 1e20, 1e9)
    assert advice.epochs == pytest.approx(best.epochs, rel=0.3)
    assert advice.low["loss_nats"] < best.loss_nats < advice.high["loss_nats"]
    assert "20 bootstrap samples of your runs" in advice.interval_source


def test_advice_from_few_runs_fits_the_level_alone() -> None:
    fit = fit_evidence(evidence(6), 1e9, 1e20, FEW_STARTS)
    advice = advise(1e9, 1e20, fit=fit, samples=fit.num_bootstraps)
    assert advice.basis.from_runs == ["E"] and "alpha" in advice.basis.from_published
    assert "public runs" in advice.basis.source


def test_advice_from_few_runs_needs_a_law_with_constants() -> None:
    few = evidence(6)._replace(law="excess-1")
    with pytest.raises(AnalysisError, match="must be at least 12"):
        fit_evidence(few, 1e9, 1e20, FEW_STARTS)


@pytest.mark.parametrize(("unique", "compute"), [(0.0, 1e20), (1e9, float("inf")), (1e9, float("nan"))])
def test_advise_refuses_impossible_quantities(unique: float, compute: float) -> None:
    with pytest.raises(AnalysisError, match="must be finite and above zero"):
        advise(unique, compute)


def test_best_for_budget_is_the_minimum_of_a_grid() -> None:
    law, values = find_law("excess-saturating"), TRUTH["excess-saturating"]
    best = best_for_budget(law, values, 1e20, 1e9)
    size, tokens = np.meshgrid(np.geomspace(1e7, 1e11, 300), np.geomspace(1e8, 1e13, 300))
    loss = law.loss(values, {"N": size, "D": tokens, "U": np.minimum(1e9, tokens)})
    loss[6 * size * tokens > 1e20] = np.inf
    assert best.loss_nats <= loss.min() + 1e-9
    assert best.loss_nats == pytest.approx(loss.min(), abs=1e-3)


def test_best_for_budget_needs_a_law_in_size_and_tokens() -> None:
    with pytest.raises(AnalysisError, match="must be a law in N and D"):
        best_for_budget(find_law("power"), {"A": 1.0, "alpha": 0.1}, 1e20, 1e9)


def test_evidence_needs_its_columns() -> None:
    table = pa.table({"loss": [3.0]})
    with pytest.raises(AnalysisError, match="column size: must be a column of the table"):
        fit_evidence(Evidence(table, "loss", COLUMNS), 1e9, 1e20, FEW_STARTS)
