"""Mixtures: each source has its own epochs, exactly, whatever the ranks."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore

from reptrain.config import Budget, RunConfig
from reptrain.errors import PlanError
from reptrain.plan import (
    EpochPlan,
    MixturePlan,
    StepPlan,
    Stream,
    Subset,
    mixture,
    open_stream,
    plan_epochs,
    plan_mixture,
    rank_rows,
    source_seed,
)

WINDOW = 4
sources = st.tuples(
    st.integers(WINDOW, 60),
    st.fractions(Fraction(1, 4), 4, max_denominator=8),
    st.sampled_from(["reshuffle", "same", "mixed"]),
    st.sampled_from(["fixed", "shifted"]),
    st.integers(0, 2**63 - 1),
)
mixtures = st.lists(sources, min_size=1, max_size=4)


def plan_of(drawn) -> MixturePlan:
    return MixturePlan(
        tuple(
            plan_epochs(
                unique_tokens=unique,
                window_tokens=WINDOW,
                budget=Budget(epochs=epochs),
                order=order,
                cut=cut,
                seed=seed,
            )
            for unique, epochs, order, cut, seed in drawn
        )
    )


@given(mixtures)
@settings(max_examples=50, deadline=None)
def test_locate_gives_each_source_its_own_windows_in_their_order(drawn):
    plan = plan_of(drawn)
    found = plan.locate(np.arange(plan.total_windows))
    first = 0
    for place, own in enumerate(plan.plans):
        mine = found.source == place
        expected = own.locate(np.arange(own.total_windows))
        assert (found.start[mine] == expected.start + first).all()
        for name in ("epoch", "window", "length"):
            assert (getattr(found, name)[mine] == getattr(expected, name)).all()
        first += own.unique_tokens


@given(mixtures, st.data())
@settings(max_examples=50, deadline=None)
def test_tokens_shares_and_epochs_equal_a_count(drawn, data):
    plan = plan_of(drawn)
    first = data.draw(st.integers(0, plan.total_windows))
    windows = data.draw(st.integers(0, plan.total_windows - first))
    found = plan.locate(np.arange(plan.total_windows))
    assert plan.tokens_before(first) == int(found.length[:first].sum())
    assert plan.total_tokens == int(plan.tokens_of(np.arange(plan.total_windows)).sum())
    for place, (own, share) in enumerate(zip(plan.plans, plan.shares(first, windows), strict=True)):
        of_source = found.source == place
        step = of_source[first : first + windows]
        before = int(of_source[:first].sum())
        assert (share.windows, share.epoch) == (int(step.sum()), before // own.windows_per_epoch)
        assert share.tokens == int(found.length[first : first + windows][step].sum())
        assert plan.epochs_before(first)[place] == Fraction(before, own.windows_per_epoch)
    if first < plan.total_windows:
        assert plan.source_at(first) == found.source[first]


@given(mixtures, st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_ranks_together_consume_each_source_exactly(drawn, batch_windows, world_size, micro):
    plan = plan_of(drawn)
    steps = StepPlan(batch_windows, plan.total_windows)
    counts = np.zeros(plan.unique_tokens, dtype=int)
    for step in range(steps.num_steps):
        first, count = steps.window_range(step)
        for rank in range(world_size):
            rows = rank_rows(batch_windows, rank=rank, world_size=world_size, micro_batch_windows=micro)
            found = plan.locate(first + rows[rows < count])
            for start, length in zip(found.start, found.length, strict=True):
                counts[start : start + length] += 1
    first = 0
    for own in plan.plans:
        seen = set(counts[first : first + own.unique_tokens])
        if own.order == "mixed" and own.epochs.denominator > 1:
            assert max(seen) <= -(-own.total_windows // own.windows_per_epoch)
        else:
            whole, rest = divmod(own.total_windows, own.windows_per_epoch)
            assert seen <= ({whole, whole + 1} if rest else {whole})
        first += own.unique_tokens


@given(sources)
def test_a_source_alone_is_its_own_plan(drawn):
    (own,) = plan_of([drawn]).plans
    plan, indices = MixturePlan((own,)), np.arange(own.total_windows)
    for found, expected in zip(plan.locate(indices), own.locate(indices), strict=True):
        assert (found == expected).all()
    assert (plan.windows_per_epoch, plan.epochs) == (own.windows_per_epoch, own.epochs)


def test_locate_at_the_far_end_of_a_very_long_run():
    real = EpochPlan(10**12, 2048, 10**15, "reshuffle", "shifted", seed=3)
    synthetic = EpochPlan(10**11, 2048, 10**13, "reshuffle", "fixed", seed=4)
    plan = MixturePlan((real, synthetic))
    found = plan.locate(np.asarray([0, plan.total_windows - 1]))
    assert (found.start + found.length <= 11 * 10**11).all()
    assert plan.tokens_before(plan.total_windows) == plan.total_tokens


def configured(**settings) -> RunConfig:
    sources = {
        "real": {"store": "r", "total_tokens": "2epochs"},
        "synthetic": {"store": "s", "order": "same", "subset_seed": 5},
    }
    data = {"sources": sources, "window_tokens": 2, "cut": "shifted", **settings}
    return RunConfig.model_validate({"data": data})


def test_plan_mixture_gives_each_source_its_own_settings():
    plan = plan_mixture(configured(), {"real": 6, "synthetic": 4})
    real, synthetic = plan.plans
    assert (real.order, real.cut, real.epochs) == ("reshuffle", "shifted", 2)
    assert (synthetic.order, synthetic.cut, synthetic.epochs) == ("same", "shifted", 1)
    assert (real.seed, synthetic.seed) == (source_seed(0, "real"), source_seed(0, "synthetic"))
    assert real.seed != synthetic.seed


def test_plan_mixture_of_one_store_is_keyed_by_the_seed_of_the_run():
    config = RunConfig.model_validate({"data": {"store": "r", "window_tokens": 2}, "seed": 7})
    assert [plan.seed for plan in plan_mixture(config, {"data": 6}).plans] == [7]


def test_plan_mixture_names_the_source_that_is_shorter_than_a_window():
    with pytest.raises(PlanError, match=r"source synthetic: data\.window_tokens: .* a subset of 1"):
        plan_mixture(configured(), {"real": 6, "synthetic": 1})


def test_module_docstring_shows_a_correct_mixture():
    plan = plan_mixture(configured(cut="fixed"), {"real": 6, "synthetic": 4})
    found = plan.locate(np.arange(8))
    names = np.asarray(["real", "syn"])[found.source]
    shown = {
        " ".join(line[:16].split()): line[16:].split()[:8]
        for line in (mixture.__doc__ or "").splitlines()
        if line[16:17].strip()
    }
    assert shown["source"] == names.tolist()
    assert shown["of its epoch"] == [str(epoch) for epoch in found.epoch]
    assert shown["start"] == [str(start) for start in found.start]


@pytest.fixture
def stream(tmp_path):
    stores = {name: MemoryStore(tmp_path / name, lengths) for name, lengths in LENGTHS.items()}
    return Stream([Subset.open(store, unique_tokens=10) for store in stores.values()])


LENGTHS = {"real": [3, 1, 7, 2], "synthetic": [5, 5, 2]}


def test_stream_is_the_subsets_end_to_end(stream):
    first, second = stream.subsets
    assert (stream.unique_tokens, stream.starts.tolist()) == (20, [0, 10])
    assert stream.source_of(np.asarray([0, 9, 10, 19])).tolist() == [0, 0, 1, 1]
    assert stream.read(2, 5).tolist() == first.read(2, 5).tolist()
    assert stream.read(13, 7).tolist() == second.read(3, 7).tolist()
    assert stream.documents(13, 7) == second.documents(3, 7)


def test_stream_tokens_are_rows_of_either_source(stream):
    start, length = np.asarray([12, 0, 0, 7]), np.asarray([4, 3, 0, 3])
    tokens, lengths = stream.tokens(start, length, 5)
    assert lengths.tolist() == length.tolist()
    for row, first, number in zip(tokens, start, length, strict=True):
        assert row[:number].tolist() == stream.read(int(first), int(number)).tolist()
        assert not row[number:].any()


@pytest.mark.parametrize(("start", "length"), [(8, 3), (18, 3), (-1, 2)])
def test_stream_refuses_a_window_that_leaves_its_source(stream, start, length):
    with pytest.raises(PlanError, match="window"):
        stream.tokens(np.asarray([start]), np.asarray([length]), 4)


def test_stream_of_one_subset_keeps_its_fingerprint(stream):
    first, second = stream.subsets
    assert Stream([first]).fingerprint == first.fingerprint
    assert len({stream.fingerprint, Stream([second, first]).fingerprint, first.fingerprint}) == 3


def test_open_stream_names_the_source_that_asks_for_too_much(tmp_path):
    stores = {name: MemoryStore(tmp_path / name, lengths) for name, lengths in LENGTHS.items()}
    config = configured()
    assert open_stream(config, stores).unique_tokens == 25
    large = config.data.sources["synthetic"].model_copy(update={"unique_tokens": 13})
    data = config.data.model_copy(update={"sources": {**config.data.sources, "synthetic": large}})
    with pytest.raises(PlanError, match=r"data\.sources\.synthetic\.unique_tokens: .* 13 of the 12 tokens"):
        open_stream(config.model_copy(update={"data": data}), stores)


@given(mixtures, st.data())
@settings(max_examples=30, deadline=None)
def test_index_of_is_the_inverse_of_the_turns(drawn, data):
    plan = plan_of(drawn)
    index = data.draw(st.integers(0, plan.total_windows - 1))
    turns = plan.interleaving.locate(np.asarray([index]))
    assert plan.index_of(int(turns.source[0]), int(turns.local[0])) == index
