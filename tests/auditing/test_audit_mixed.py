"""The order `mixed`: the audit reports its exposures, and they are no problem of the run."""

from __future__ import annotations

import json
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from audited_runs import UNIQUE, rewrite, trained
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from reptrain.auditing import mixed
from reptrain.auditing.audit import audit
from reptrain.auditing.exposures import Stretches
from reptrain.auditing.mixed import differing, mixed_prefix
from reptrain.cli import app
from reptrain.plan import EpochPlan


def truncated(folder, steps):
    rewrite(folder, lambda records: records[:steps])
    folder.set_status("running")
    return audit(folder.path)


def test_mixed_of_four_epochs_has_the_shares_of_chance_at_the_first_nominal_end():
    """Of W windows in 4 copies, W drawn without putting back: (3/4)**4 unseen and so on."""
    plan = EpochPlan(4096 * 16, 16, 4 * 4096, "mixed", "fixed", seed=0)
    first, second, third, last = mixed_prefix(plan, plan.total_windows).ends
    for end, drawn in ((first, 1), (second, 2), (third, 3)):
        unseen, once = (comb(4, n) * (drawn / 4) ** n * (1 - drawn / 4) ** (4 - n) for n in (0, 1))
        assert end.epoch == drawn
        # Four standard deviations of a share of 4096 windows.
        assert end.unseen == pytest.approx(unseen, abs=4 * 0.5 / 64)
        assert end.once == pytest.approx(once, abs=4 * 0.5 / 64)
        assert end.unseen + end.once + end.more == pytest.approx(1)
    assert (first.unseen, first.more) == (pytest.approx(0.316, abs=0.02), pytest.approx(0.262, abs=0.02))
    assert (last.epoch, last.unseen, last.once, last.more) == (4, 0, 0, 1)


@given(
    st.integers(1, 40).flatmap(lambda length: st.tuples(st.integers(length, 120), st.just(length))),
    st.fractions(Fraction(1, 4), 12, max_denominator=8),
    st.sampled_from(["fixed", "shifted"]),
    st.integers(0, 2**32),
    st.data(),
)
def test_mixed_prefix_equals_a_count_token_by_token(size, epochs, cut, seed, data):
    unique, window = size
    per_epoch = EpochPlan(unique, window, 1, "mixed", cut, seed).windows_per_epoch
    plan = EpochPlan(unique, window, max(1, int(epochs * per_epoch)), "mixed", cut, seed)
    windows = data.draw(st.integers(0, plan.total_windows))
    prefix = mixed_prefix(plan, windows)
    found, plain = plan.locate(np.arange(windows)), np.zeros(unique, dtype=int)
    shares = {}
    for number, (start, length) in enumerate(zip(found.start, found.length, strict=True), start=1):
        plain[start : start + length] += 1
        if number % per_epoch == 0:
            shares[number // per_epoch] = [np.mean(plain == 0), np.mean(plain == 1), np.mean(plain > 1)]
    assert prefix.stretches.each().tolist() == plain.tolist()
    reported = {end.epoch: [end.unseen, end.once, end.more] for end in prefix.ends}
    assert reported == {epoch: pytest.approx(shares[epoch]) for epoch in reported}
    last = windows // per_epoch
    assert set(reported) == {e for e in range(1, last + 1) if e <= 8 or e == last or e & (e - 1) == 0}


def test_audit_of_whole_mixed_epochs_is_exact_and_reports_the_ends(store, tmp_path):
    report = audit(trained(store, tmp_path / "run", budget="4epochs", order="mixed").path)
    assert report.exact and report.as_planned and report.exposures == {4: UNIQUE}
    (source,) = report.sources
    assert [end.epoch for end in source.mixed_ends] == [1, 2, 3, 4]
    assert report.text().startswith("exact\n")
    first = source.mixed_ends[0]
    assert (
        f"order mixed, at nominal epoch end 1: {first.unseen:.1%} of the tokens unseen,"
        f" {first.once:.1%} seen once, {first.more:.1%} twice or more" in report.text()
    )
    assert first.unseen > 0.1 and first.more > 0.1


def test_audit_of_a_mixed_run_at_its_first_nominal_end_is_as_planned(store, tmp_path):
    folder = trained(store, tmp_path / "run", budget="4epochs", order="mixed", batch=21)
    report = truncated(folder, 1)
    assert report.as_planned and not report.exact and not report.complete
    assert report.num_problems == 0 and report.problems == ()
    assert report.text().startswith(
        "as planned, but the order mixed is not exact at 1 epochs, not complete\n"
    )
    (source,) = report.sources
    (end,) = source.mixed_ends
    assert source.exposures[0] == round(end.unseen * UNIQUE) > 0
    assert (source.order, source.exact, source.epochs_begun, source.epochs_ended) == ("mixed", False, 1, 1)


def test_audit_of_a_fraction_of_mixed_epochs_is_as_planned_and_complete(store, tmp_path):
    report = audit(trained(store, tmp_path / "run", order="mixed").path)
    assert report.as_planned and report.complete and not report.exact
    assert report.text().startswith("as planned, but the order mixed is not exact at 53/21 epochs\n")
    assert "not exact:" not in report.text()


def test_audit_of_a_mixed_run_that_misses_a_step_is_not_as_planned(store, tmp_path):
    folder = trained(store, tmp_path / "run", order="mixed")
    rewrite(folder, lambda records: [*records[:3], *records[4:]])
    report = audit(folder.path)
    assert not report.as_planned and not report.exact
    assert report.text().startswith("not exact: ")
    assert any("tokens were consumed" in problem.message for problem in report.problems)


def test_audit_of_a_mixed_run_that_consumed_a_step_twice_is_not_as_planned(store, tmp_path):
    folder = trained(store, tmp_path / "run", order="mixed", budget="3epochs")
    rewrite(folder, lambda records: [*records[:3], records[2], *records[3:]])
    report = audit(folder.path)
    assert not report.as_planned
    doubled = next(problem for problem in report.problems if "4 times, not 3" in problem.message)
    assert doubled.step == 2 and 16 <= doubled.index < 24


def test_audit_command_answers_1_for_a_mixed_run_between_whole_epochs(store, tmp_path):
    folder = trained(store, tmp_path / "run", order="mixed")
    done = CliRunner().invoke(app, ["audit", str(folder.path), "--json"])
    report = json.loads(done.stdout)
    assert (done.exit_code, report["exact"], report["as_planned"]) == (1, False, True)
    whole = trained(store, tmp_path / "whole", order="mixed", budget="2epochs")
    assert CliRunner().invoke(app, ["audit", str(whole.path)]).exit_code == 0


def test_mixed_prefix_works_in_any_pieces(monkeypatch):
    plan = EpochPlan(1000, 48, 100, "mixed", "shifted", seed=2)
    whole = mixed_prefix(plan, 90)
    monkeypatch.setattr(mixed, "_CHUNK_WINDOWS", 7)
    pieces = mixed_prefix(plan, 90)
    assert pieces.ends == whole.ends
    assert pieces.stretches.each().tolist() == whole.stretches.each().tolist()


def test_differing_has_the_stretches_of_each_pair_of_counts():
    actual = Stretches(*map(np.asarray, ([0, 10, 20, 30], [10, 20, 30, 40], [1, 2, 1, 3])))
    expected = Stretches(*map(np.asarray, ([0, 5, 25], [5, 25, 40], [2, 1, 3])))
    found = [
        (plan, *(column.tolist() for column in counted)) for counted, plan in differing(actual, expected)
    ]
    # Expected count; start, end and actual count of each stretch, by pairs in ascending order.
    assert found == [
        (2, [0], [5], [1]),
        (3, [25], [30], [1]),
        (1, [10], [20], [2]),
    ]
    both = Stretches(*map(np.asarray, ([0, 2, 4], [2, 4, 6], [1, 0, 1])))
    plan = Stretches(*map(np.asarray, ([0], [6], [0])))
    assert [(n, s.start.tolist(), s.end.tolist()) for s, n in differing(both, plan)] == [(0, [0, 4], [2, 6])]
