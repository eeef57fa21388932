"""The order in which sources take turns: a bijection, with every share kept in every stretch."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reptrain.errors import PlanError
from reptrain.plan import Interleaving, interleaving

few = st.lists(st.integers(1, 60), min_size=1, max_size=6).map(tuple)
many = st.lists(
    st.one_of(st.integers(1, 10), st.integers(3000, 9000)), min_size=2, max_size=5
).map(tuple)  # fmt: skip


def webster(counts: tuple[int, ...]) -> list[tuple[int, int]]:
    """(source, local) of all windows, sorted as the rule says."""
    at = [(Fraction(2 * j + 1, 2 * n), i, j) for i, n in enumerate(counts) for j in range(n)]
    return [(i, j) for _, i, j in sorted(at)]


def located(order: Interleaving) -> list[tuple[int, int]]:
    turns = order.locate(np.arange(order.total))
    return list(zip(turns.source.tolist(), turns.local.tolist(), strict=True))


def test_locate_is_the_order_that_the_module_shows():
    names = [f"{'AB'[source]}{local}" for source, local in located(Interleaving((4, 2)))]
    shown = [line.split()[1:] for line in (interleaving.__doc__ or "").splitlines() if line[:6] == "window"]
    assert shown == [names]


@given(few)
def test_locate_within_a_block_equals_a_sort(counts):
    assert located(Interleaving(counts)) == webster(counts)


@given(few, st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_locate_and_counts_before_agree_over_many_blocks(counts, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interleaving, "BLOCK_WINDOWS", block)
        order = Interleaving(counts)
        turns = located(order)
        assert sorted(turns) == sorted(webster(counts))
        seen = np.zeros(len(counts), dtype=int)
        for index, (source, local) in enumerate(turns):
            assert order.counts_before(index) == tuple(seen)
            if index % block == 0:
                first = [i for i, _ in webster(counts)[:index]]
                assert seen.tolist() == np.bincount(first, minlength=len(counts)).tolist()
            assert local == seen[source]
            seen[source] += 1
        assert order.counts_before(order.total) == counts


@given(many)
@example((1, 4095, 4096, 1))
@settings(max_examples=25, deadline=None)
def test_every_stretch_keeps_every_share(counts):
    order = Interleaving(counts)
    turns = order.locate(np.arange(order.total))
    bound = max(1, len(counts) - 1)
    for source, count in enumerate(counts):
        before = np.concatenate([[0], np.cumsum(turns.source == source)])
        error = before - np.arange(order.total + 1) * (count / order.total)
        assert abs(error).max() <= bound + 1e-9
        # The largest error over all stretches: the difference of two of these.
        assert error.max() - error.min() <= 2 * bound + 1e-9


@given(few, st.data())
def test_locate_is_a_function_of_the_index_alone(counts, data):
    order = Interleaving(counts)
    index = data.draw(st.lists(st.integers(0, order.total - 1), max_size=12))
    whole, alone = located(order), order.locate(np.asarray(index, dtype=np.int64).reshape(-1, 1))
    assert alone.source.shape == (len(index), 1)
    found = zip(alone.source[:, 0].tolist(), alone.local[:, 0].tolist(), strict=True)
    assert list(found) == [whole[i] for i in index]


def test_locate_and_counts_at_the_far_end_of_a_very_long_run():
    counts = (10**18, 3 * 10**17 + 1, 7)
    order = Interleaving(counts)
    assert order.counts_before(order.total) == counts
    last = order.locate(np.arange(order.total - 20, order.total))
    before = order.counts_before(order.total - 20)
    for source, count in enumerate(counts):
        of_source = last.local[last.source == source].tolist()
        assert of_source == list(range(before[source], count))
    middle = order.total // 3
    exact = [Fraction(middle * count, order.total) for count in counts]
    assert all(abs(n - share) <= 2 for n, share in zip(order.counts_before(middle), exact, strict=True))


def test_a_single_source_has_every_turn():
    order = Interleaving((5,))
    assert located(order) == [(0, j) for j in range(5)]
    assert order.counts_before(3) == (3,)


@pytest.mark.parametrize("counts", [(), (3, 0), (2**61, 2**61)])
def test_interleaving_refuses_shares_without_an_order(counts):
    with pytest.raises(PlanError, match="at least 1 for each and below"):
        Interleaving(counts)
