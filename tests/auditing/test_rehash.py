"""Digests from sums over the stream equal those taken window by window, whatever is cut where."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryStore

from reptrain.auditing import rehash
from reptrain.auditing.cuts import Cuts
from reptrain.auditing.rehash import window_digests
from reptrain.plan import EpochPlan, Stream, Subset
from reptrain.plan.digest import window_digest


@pytest.fixture(scope="module", params=["fixed", "repacked"])
def stream(tmp_path_factory, request):
    """Two sources of 120 (or twice 60) and 75 tokens, in short documents."""
    made = []
    for name, lengths in (("a", [7, 1, 40, 3, 90]), ("b", [30, 2, 2, 2, 60])):
        folder = tmp_path_factory.mktemp(name)
        made.append(MemoryStore(folder, lengths))
    first = 60 if request.param == "repacked" else 120
    subsets = [
        Subset.open(store, unique_tokens=unique) for store, unique in zip(made, (first, 75), strict=True)
    ]
    plans = [
        EpochPlan(first, 10, 2 * first // 10, "reshuffle", request.param, seed=1),
        EpochPlan(75, 10, 8, "reshuffle", "fixed", seed=1),
    ]
    return Stream(subsets, plans)


def within(low: int, high: int):
    return st.tuples(st.integers(low, high - 1), st.integers(1, 40)).map(
        lambda pair: (pair[0], min(pair[1], high - pair[0]))
    )


windows = st.lists(st.one_of(within(0, 120), within(120, 195)), min_size=1, max_size=30)


@given(windows, st.sampled_from([1, 5, 16, 1 << 14]), st.sampled_from([1, 16, 64, 1 << 20]))
def test_window_digests_equal_those_window_by_window(stream, chosen, piece, task):
    start, length = np.asarray(chosen, dtype=np.int64).T
    tokens, _ = stream.tokens(start, length, 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehash, "_PIECE_TOKENS", piece)
        patch.setattr(rehash, "_TASK_TOKENS", task)
        patch.setattr(rehash, "_TABLE", rehash.place_base(np.arange(2 * piece)))
        found = window_digests(stream, Cuts.of(start, length))
    assert found.tolist() == window_digest(tokens, start, length).tolist()


def test_window_digests_hash_each_token_once(stream, monkeypatch):
    read = []
    flat = Stream.flat

    def counted(self, start, length):
        read.append(int(length.sum()))
        return flat(self, start, length)

    monkeypatch.setattr(Stream, "flat", counted)
    start = np.repeat(np.arange(0, 60, 3), 50)
    window_digests(stream, Cuts.of(start, np.full(start.size, 10)))
    assert sum(read) == 57 + 10
    read.clear()
    # Between the two windows there is nothing to read.
    window_digests(stream, Cuts.of(np.asarray([0, 150]), np.asarray([5, 6])))
    assert sum(read) == 11


@given(windows)
def test_cuts_hold_every_window_between_its_boundaries(chosen):
    start, length = np.asarray(chosen, dtype=np.int64).T
    cuts = Cuts.of(start, length)
    assert cuts.boundary.tolist() == sorted({*start.tolist(), *(start + length).tolist()})
    assert cuts.boundary[cuts.first].tolist() == start.tolist()
    assert cuts.boundary[cuts.last].tolist() == (start + length).tolist()
