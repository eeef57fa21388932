"""Repacked cuts: the documents of each epoch in an order of its own, every token once an epoch."""

from __future__ import annotations

import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from memory_store import MemorySplit

from reptrain import random
from reptrain.errors import PlanError
from reptrain.plan import EpochPlan, Stream, Subset
from reptrain.plan.document_order import DocumentOrder, derive_order
from reptrain.plan.repacked import Repacked

seeds = st.integers(0, 2**63 - 1)
EPOCHS = 3


@st.composite
def sizes(draw):
    """Lengths of documents (some are empty), U and L."""
    lengths = draw(st.lists(st.integers(0, 25), min_size=1, max_size=12).filter(any))
    unique = draw(st.integers(1, sum(lengths)))
    return lengths, unique, draw(st.integers(1, unique))


def opened(size, seed, order="reshuffle") -> tuple[Subset, EpochPlan, Stream]:
    lengths, unique, window = size
    split = MemorySplit(lengths)
    documents = derive_order(split, seed=seed % 5)
    subset = Subset(split, documents, seed=seed % 5, unique_tokens=unique, fingerprint="")
    plan = EpochPlan(unique, window, EPOCHS * -(-unique // window), order, "repacked", seed)
    return subset, plan, Stream([subset], [plan])


def documents_of(subset: Subset) -> list[list[int]]:
    """The tokens of each document of a subset, by place; the last one may be cut."""
    starts = np.minimum(subset.order.starts, subset.unique_tokens).tolist()
    tokens = subset.read(0, subset.unique_tokens).tolist()
    return [tokens[low:high] for low, high in pairwise(starts)]


@settings(max_examples=40)
@given(sizes(), seeds, st.sampled_from(["reshuffle", "same"]))
@example(([7], 7, 3), 0, "reshuffle")  # one document, U not a multiple of L
@example(([40, 2, 1], 43, 4), 1, "reshuffle")  # a document of many windows
@example(([0, 0, 5, 0, 3, 0], 8, 4), 2, "same")  # empty documents, U a multiple of L
@example(([9, 9], 10, 10), 3, "reshuffle")  # one window an epoch, and a document cut to one token
def test_each_epoch_is_the_documents_in_some_order_in_windows(size, seed, order):
    subset, plan, stream = opened(size, seed, order)
    documents = [document for document in documents_of(subset) if document]
    last = int(np.searchsorted(subset.order.starts, subset.unique_tokens))
    is_cut = subset.order.starts[last] > subset.unique_tokens
    found = plan.locate(np.arange(plan.total_windows))
    rows, _ = stream.tokens(found.start, found.length, plan.window_tokens)
    for epoch in range(EPOCHS):
        mine = np.flatnonzero(found.epoch == epoch)
        assert mine.size == plan.windows_per_epoch
        in_order = mine[np.argsort(found.window[mine])]
        tokens = [token for row in in_order for token in rows[row, : found.length[row]].tolist()]
        # The tokens of MemoryStore are all different, so the first one identifies a document.
        by_first = {document[0]: document for document in documents}
        seen = []
        while tokens:
            document = by_first.pop(tokens[0])
            assert tokens[: len(document)] == document
            seen.append(document)
            tokens = tokens[len(document) :]
        assert not by_first
        assert not is_cut or seen[-1] == documents[-1]


@settings(max_examples=40)
@given(sizes(), seeds, st.data())
def test_any_window_is_read_without_the_epochs_before(size, seed, data):
    subset, plan, stream = opened(size, seed)
    found = plan.locate(np.arange(plan.total_windows))
    rows, lengths = stream.tokens(found.start, found.length, plan.window_tokens)
    picked = data.draw(st.lists(st.integers(0, plan.total_windows - 1), min_size=1, max_size=6))
    alone = Stream([subset], [plan])
    some, _ = alone.tokens(found.start[picked], found.length[picked], plan.window_tokens)
    assert some.tolist() == rows[picked].tolist()
    flat = alone.flat(found.start[picked], found.length[picked])
    assert flat.tolist() == [token for row in picked for token in rows[row, : lengths[row]]]


@settings(max_examples=40)
@given(sizes(), seeds)
def test_positions_of_subset_and_stream_belong_together(size, seed):
    subset, _, stream = opened(size, seed)
    (part,) = stream.parts
    assert isinstance(part, Repacked)
    unique = subset.unique_tokens
    whole = part.read(0, EPOCHS * unique)
    for epoch in range(EPOCHS):
        position = part.in_epoch(np.arange(unique), epoch)
        assert (position // unique == epoch).all()
        assert (whole[position] == subset.read(0, unique)).all()
        start, length = part.spans(np.asarray([epoch * unique]), np.asarray([unique]))
        places = np.concatenate([np.arange(s, s + n) for s, n in zip(start, length, strict=True)])
        assert (part.in_epoch(places, epoch) == np.arange(epoch * unique, (epoch + 1) * unique)).all()


def test_orders_differ_by_epoch_and_seed_and_are_kept_for_two_epochs(monkeypatch):
    _, plan, stream = opened(([3] * 40, 120, 7), 1)
    (part,) = stream.parts
    orders = [part.read(epoch * 120, 120).tolist() for epoch in range(EPOCHS)]
    assert len({tuple(order) for order in orders}) == EPOCHS
    other = opened(([3] * 40, 120, 7), 6)[2].parts[0]
    assert other.read(0, 120).tolist() not in orders
    computed = []
    shuffled = random.shuffled
    monkeypatch.setattr(
        random, "shuffled", lambda *given, **more: computed.append(1) or shuffled(*given, **more)
    )
    again = Stream([part.subset], [plan])
    for first in (0, 60, 110, 130, 100, 200):
        again.read(first, 20)
    assert len(computed) == 2


def test_orders_are_frozen():
    """Ledgers depend on these orders: a faster way must give the same."""
    _, _, stream = opened(([4, 2, 7, 1, 3, 5], 19, 6), 11)
    epochs = [stream.documents(epoch * 19, 19) for epoch in range(EPOCHS)]
    numbers = [[int(name.split()[1]) for name in names] for names in epochs]
    assert numbers == [[5, 0, 3, 2, 4], [0, 2, 5, 3, 4], [2, 0, 5, 3, 4]]


def test_threads_read_the_same():
    subset, plan, stream = opened(([5, 1, 30, 2, 9, 4] * 30, 1500, 64), 3)
    found = plan.locate(np.arange(plan.total_windows))
    expected = [stream.flat(found.start[[i]], found.length[[i]]).tolist() for i in range(plan.total_windows)]
    shared = Stream([subset], [plan])
    with ThreadPoolExecutor(8) as pool:
        read = pool.map(
            lambda i: shared.flat(found.start[[i]], found.length[[i]]).tolist(), range(len(expected))
        )
        assert list(read) == expected


def test_a_source_of_a_mixture_is_repacked_beside_one_that_is_not():
    first, plan, _ = opened(([3, 4, 5, 6], 16, 4), 2)
    second, *_ = opened(([2, 9], 10, 4), 0)
    stream = Stream([first, second], [plan, EpochPlan(10, 4, 3, "reshuffle", "fixed", 0)])
    assert (stream.starts.tolist(), stream.num_tokens) == ([0, 48], 58)
    assert (stream.subset_starts.tolist(), stream.unique_tokens) == ([0, 16], 26)
    assert stream.read(48, 10).tolist() == second.read(0, 10).tolist()
    assert sorted(stream.read(32, 16)) == sorted(first.read(0, 16))
    with pytest.raises(PlanError, match="must be within the stream's 58 tokens"):
        stream.read(50, 9)


def test_a_window_longer_than_the_subset_is_refused():
    with pytest.raises(PlanError, match="11 tokens for a subset of 10"):
        opened(([10], 10, 11), 0)


class Documents:
    """A subset that ends within its last document; its tokens are not read."""

    def __init__(self, count: int) -> None:
        lengths = np.random.default_rng(0).integers(1, 2_000, count)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        self.split, self.unique_tokens = MemorySplit([1]), int(starts[-1]) - 1
        self.order = DocumentOrder(starts, np.arange(count))


def test_start_takes_memory_by_the_document_and_calls_by_the_chunk():
    """No Python code runs for each document, and there are two tables of them, whatever the epochs."""
    count = 2**18
    subset, calls = Documents(count), 0

    def counted(frame, event, argument):
        nonlocal calls
        calls += 1

    tracemalloc.start()
    repacked = Repacked(subset, seed=1, epochs=10**6)
    assert tracemalloc.get_traced_memory()[1] < 10**5
    sys.setprofile(counted)
    repacked._pieces(np.asarray([0]), np.asarray([100]))
    sys.setprofile(None)
    kept, most = tracemalloc.get_traced_memory()
    assert kept < 16.2 * count and most < 30 * count
    assert calls < 500 + 20 * count // random._CHUNK
    for epoch in (7, 10**6 - 1):
        repacked._pieces(np.asarray([epoch * subset.unique_tokens]), np.asarray([100]))
    assert tracemalloc.get_traced_memory()[0] < 32.2 * count
    tracemalloc.stop()
