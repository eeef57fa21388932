"""The plan of epochs: exact counts for every size, cut and order."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reptrain.config import Budget
from reptrain.errors import PlanError
from reptrain.plan import EpochPlan, plan_epochs

seeds = st.integers(0, 2**63 - 1)
CUTS = ["fixed", "shifted", "repacked"]
cuts = st.sampled_from(CUTS)
orders_and_cuts = st.sampled_from(
    [
        (order, cut)
        for order in ("reshuffle", "same", "mixed")
        for cut in CUTS
        if (order, cut) != ("mixed", CUTS[2])
    ]
)
# Small enough to count token by token; U is seldom a multiple of L, and W = 1 and L = 1 are frequent.
fractions = st.fractions(Fraction(1, 50), 4, max_denominator=50)
sizes = st.integers(1, 60).flatmap(lambda length: st.tuples(st.integers(length, 200), st.just(length)))


def exposures(plan: EpochPlan, indices: np.ndarray) -> np.ndarray:
    """How often each position of an epoch is consumed at these global indices, counted one by one."""
    counts = np.zeros(plan.unique_tokens, dtype=int)
    found = plan.locate(indices)
    for start, length in zip(found.start, found.length, strict=True):
        first = start % plan.unique_tokens
        assert first + length <= plan.unique_tokens
        counts[first : first + length] += 1
    return counts


def make(size: tuple[int, int], epochs: Fraction, order: str, cut: str, seed: int) -> EpochPlan:
    return budgeted(size, Budget(epochs=epochs), order, cut, seed)


def budgeted(size, budget, order="same", cut="fixed", seed=0) -> EpochPlan:
    unique, window = size
    return plan_epochs(
        unique_tokens=unique, window_tokens=window, budget=budget, order=order, cut=cut, seed=seed
    )


@given(sizes, st.integers(1, 5), st.sampled_from(["reshuffle", "same"]), cuts, seeds)
def test_locate_covers_each_token_once_in_every_epoch(size, epochs, order, cut, seed):
    plan = make(size, Fraction(epochs), order, cut, seed)
    for epoch in range(epochs):
        indices = np.arange(plan.windows_per_epoch) + epoch * plan.windows_per_epoch
        found = plan.locate(indices)
        assert (found.epoch == epoch).all()
        if cut == "repacked":
            assert (found.start // plan.unique_tokens == epoch).all()
        assert sorted(found.window) == list(range(plan.windows_per_epoch))
        assert (found.length >= 1).all() and (found.length <= plan.window_tokens).all()
        assert (exposures(plan, indices) == 1).all()


@given(sizes, st.integers(1, 5), st.sampled_from(CUTS[:2]), seeds)
def test_locate_mixed_covers_each_token_k_times(size, epochs, cut, seed):
    plan = make(size, Fraction(epochs), "mixed", cut, seed)
    assert (exposures(plan, np.arange(plan.total_windows)) == epochs).all()


@given(
    sizes,
    fractions,
    st.sampled_from(["reshuffle", "same"]),
    cuts,
    seeds,
)
def test_locate_fraction_gives_floor_and_ceil_cut_at_a_window(size, epochs, order, cut, seed):
    plan = make(size, epochs, order, cut, seed)
    counts = exposures(plan, np.arange(plan.total_windows))
    whole, rest = divmod(plan.total_windows, plan.windows_per_epoch)
    assert set(counts) <= ({whole, whole + 1} if rest else {whole})
    last = plan.locate(whole * plan.windows_per_epoch + np.arange(rest))
    assert int((counts == whole + 1).sum()) == int(last.length.sum())


@given(sizes, fractions, orders_and_cuts, seeds, st.data())
def test_tokens_before_equals_the_sum_of_windows(size, epochs, ways, seed, data):
    plan = make(size, epochs, *ways, seed)
    index = data.draw(st.integers(0, plan.total_windows))
    assert plan.tokens_before(index) == int(plan.tokens_of(np.arange(index)).sum())
    assert plan.total_tokens == int(plan.tokens_of(np.arange(plan.total_windows)).sum())


@given(sizes, orders_and_cuts, seeds, st.data())
def test_locate_is_a_function_of_the_index_alone(size, ways, seed, data):
    plan = make(size, Fraction(3), *ways, seed)
    indices = np.asarray(data.draw(st.lists(st.integers(0, plan.total_windows - 1), min_size=1, max_size=20)))
    together = plan.locate(np.arange(plan.total_windows))
    alone = plan.locate(indices.reshape(-1, 1))
    for whole, picked in zip(together, alone, strict=True):
        assert (whole[indices] == picked[:, 0]).all()


@given(sizes, seeds)
@example((10, 6), 0)  # as many offsets make q + 1 windows as q + 2
def test_windows_per_epoch_is_constant_under_shifted_cuts(size, seed):
    plan = make(size, Fraction(8), "reshuffle", "shifted", seed)
    offsets = plan.offset(np.arange(8))
    assert ((offsets >= 0) & (offsets < plan.window_tokens)).all()
    unique, window = size
    for offset in offsets:
        rest = unique - offset
        assert (offset > 0) + -(-rest // window) == plan.windows_per_epoch


def test_offset_draws_every_allowed_value():
    plan = EpochPlan(41, 8, 6, "reshuffle", "shifted", seed=5)
    few_windows = {0, 1, 2, 3, 4, 5, 6, 7}
    assert set(plan.offset(np.arange(400)).tolist()) == few_windows
    many = EpochPlan(47, 8, 7, "reshuffle", "shifted", seed=5)
    assert set(many.offset(np.arange(400)).tolist()) == {1, 2, 3, 4, 5, 6}


def test_locate_order_same_repeats_and_reshuffle_does_not():
    def windows(order):
        return EpochPlan(640, 10, 128, order, "fixed", seed=1).locate(np.arange(128)).window.reshape(2, 64)

    assert (windows("same")[0] == windows("same")[1]).all()
    assert (windows("reshuffle")[0] != windows("reshuffle")[1]).any()


def test_locate_depends_on_the_seed():
    plans = [EpochPlan(640, 10, 64, "reshuffle", "fixed", seed=seed) for seed in (1, 2)]
    first, second = (plan.locate(np.arange(64)).window for plan in plans)
    assert (first != second).any()


def test_locate_at_the_far_end_of_a_very_long_run():
    plan = EpochPlan(10**12, 2048, 10**15, "reshuffle", "shifted", seed=3)
    found = plan.locate(np.asarray([0, 10**15 - 1]))
    assert found.epoch[1] == (10**15 - 1) // plan.windows_per_epoch
    assert (found.start + found.length <= 10**12).all()


@given(sizes, st.integers(1, 10**6))
def test_plan_epochs_rounds_half_up_and_gives_at_least_one_window(size, tokens):
    plan = budgeted(size, Budget(tokens=tokens))
    exact = Fraction(tokens, size[0]) * plan.windows_per_epoch
    assert plan.total_windows == max(1, (exact + Fraction(1, 2)).__floor__())
    assert plan.epochs == Fraction(plan.total_windows, plan.windows_per_epoch)


def test_plan_epochs_of_half_a_window_rounds_up():
    plan = budgeted((40, 10), Budget(tokens=25))
    assert plan.total_windows == 3


def test_plan_epochs_refuses_a_window_longer_than_the_subset():
    with pytest.raises(PlanError, match="256 tokens for a subset of 255"):
        make((255, 256), Fraction(1), "reshuffle", "fixed", 0)


def test_plan_epochs_refuses_to_mix_repacked_epochs():
    with pytest.raises(PlanError, match="repacked with the order mixed"):
        make((40, 10), Fraction(2), "mixed", "repacked", 0)


def test_plan_epochs_refuses_repacked_positions_beyond_62_bits():
    with pytest.raises(PlanError, match=r"must be below 2\*\*62 tokens"):
        EpochPlan(2**40, 2**20, 2**43, "reshuffle", "repacked", seed=0)


def test_locate_is_frozen():
    """Ledgers hang on these windows: a faster way must give the same."""
    plan = EpochPlan(1000, 48, 80, "reshuffle", "shifted", seed=7)
    found = plan.locate(np.asarray([0, 1, 21, 22, 79]))
    assert found.epoch.tolist() == [0, 0, 0, 1, 3]
    assert found.start.tolist() == [996, 180, 228, 365, 246]
    assert found.length.tolist() == [4, 48, 48, 48, 48]


@given(sizes, st.integers(1, 6), orders_and_cuts, seeds, st.data())
def test_indices_of_finds_the_window_of_a_position_in_each_epoch(size, epochs, ways, seed, data):
    plan = make(size, Fraction(epochs), *ways, seed)
    position = data.draw(st.integers(0, plan.unique_tokens - 1))
    if plan.cut == "repacked":
        position += np.arange(epochs) * plan.unique_tokens
    index = plan.indices_of(position, np.arange(epochs))
    found = plan.locate(index)
    assert found.epoch.tolist() == list(range(epochs))
    assert ((found.start <= position) & (position < found.start + found.length)).all()


@given(sizes, st.integers(1, 40), cuts, seeds)
def test_locate_many_windows_of_an_epoch_equals_locating_each(size, epochs, cut, seed):
    plan = make(size, Fraction(epochs), "reshuffle", cut, seed)
    together = plan.locate(np.arange(plan.total_windows))
    for index in range(0, plan.total_windows, max(1, plan.total_windows // 20)):
        alone = plan.locate(np.asarray(index))
        assert (int(alone.start), int(alone.length)) == (together.start[index], together.length[index])
