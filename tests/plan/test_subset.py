"""Subsets: nested, token-exact, and read by position."""

from __future__ import annotations

import numpy as np
import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryStore

from reptrain.errors import PlanError
from reptrain.plan import Subset, document_order
from reptrain.store import open_store

LENGTHS = [3, 1, 7, 2, 2, 11, 1, 1, 5, 4]


@pytest.fixture
def store(tmp_path):
    return MemoryStore(tmp_path, LENGTHS)


@pytest.fixture(scope="session")
def open_lengths(tmp_path_factory):
    def opened(lengths, **options):
        return Subset.open(MemoryStore(tmp_path_factory.mktemp("store"), lengths), **options)

    return opened


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(0, 2**63 - 1))
def test_subset_is_every_document_whole_in_some_order(open_lengths, lengths, seed):
    subset = open_lengths(lengths, seed=seed)
    stream = subset.read(0, subset.unique_tokens)
    assert sorted(stream) == list(range(sum(lengths)))
    starts = np.cumsum([0, *lengths])
    documents = [int(name.split()[1]) for name in subset.documents(0, subset.unique_tokens)]
    assert sorted(documents) == list(range(len(lengths)))
    expected = np.concatenate([np.arange(starts[d], starts[d + 1]) for d in documents])
    assert (stream == expected).all()


@given(st.integers(1, sum(LENGTHS)))
def test_subset_of_fewer_tokens_is_a_prefix(open_lengths, unique_tokens):
    whole = open_lengths(LENGTHS, seed=4)
    part = open_lengths(LENGTHS, seed=4, unique_tokens=unique_tokens)
    assert part.unique_tokens == unique_tokens
    assert (part.read(0, unique_tokens) == whole.read(0, unique_tokens)).all()


@given(st.data())
def test_tokens_are_rows_of_the_stream_padded_with_zeros(open_lengths, data):
    subset = open_lengths(LENGTHS, seed=1, unique_tokens=30)
    window = st.integers(0, 30).flatmap(
        lambda start: st.tuples(st.just(start), st.integers(0, min(12, 30 - start)))
    )
    windows = data.draw(st.lists(window, min_size=1, max_size=8))
    start_B, length_B = (np.asarray(column) for column in zip(*windows, strict=True))
    stream = subset.read(0, 30)
    tokens, lengths = subset.tokens(start_B, length_B, 12)
    assert tokens.dtype == np.int64 and tokens.shape == (len(windows), 12)
    assert (lengths == length_B).all()
    for row, (start, length) in zip(tokens, windows, strict=True):
        assert row[:length].tolist() == stream[start : start + length].tolist()
        assert not row[length:].any()


def test_subset_of_a_real_store_is_its_documents_in_order(store_path):
    store = open_store(store_path)
    split = store.split("train")
    names = {split.document_id(index): index for index in range(split.num_documents)}
    subset = Subset.open(store, seed=3, unique_tokens=5_000)
    documents = [names[name] for name in subset.documents(0, 5_000)]
    whole = [split.read([d], [0], split.lengths(d, 1)) for d in documents]
    assert subset.read(0, 5_000).tolist() == np.concatenate(whole)[:5_000].tolist()
    assert len(set(documents)) == len(documents) > 10


def test_documents_names_those_of_a_range(store):
    subset = Subset.open(store, seed=2)
    everything = subset.documents(0, subset.unique_tokens)
    first = LENGTHS[int(everything[0].split()[1])]
    assert subset.documents(0, first) == everything[:1]
    assert subset.documents(first - 1, 2) == everything[:2]
    assert subset.documents(first, 1) == everything[1:2]


def test_subset_seeds_give_other_orders(store):
    orders = {tuple(Subset.open(store, seed=seed).documents(0, sum(LENGTHS))) for seed in range(4)}
    assert len(orders) == 4


def test_subset_fingerprint_identifies_the_subset(store, tmp_path_factory):
    subsets = [
        Subset.open(store),
        Subset.open(store, seed=1),
        Subset.open(store, unique_tokens=5),
        Subset.open(MemoryStore(store.path, [3, 4])),
    ]
    assert len({subset.fingerprint for subset in subsets}) == 4
    elsewhere = MemoryStore(tmp_path_factory.mktemp("moved"), LENGTHS)
    assert Subset.open(elsewhere).fingerprint == subsets[0].fingerprint


def test_subset_refuses_more_tokens_than_the_split_has(store):
    with pytest.raises(PlanError, match="38 of the 37 tokens in the split 'train'"):
        Subset.open(store, unique_tokens=38)


def test_tokens_refuses_a_window_outside_the_subset(store):
    subset = Subset.open(store, unique_tokens=20)
    with pytest.raises(PlanError, match="4 tokens from 17"):
        subset.read(17, 4)
    with pytest.raises(PlanError, match="longest window"):
        subset.tokens(np.asarray([0]), np.asarray([4]), 3)


def test_order_is_computed_once_and_mapped(store, monkeypatch):
    first = Subset.open(store).read(0, 37)
    monkeypatch.setattr(document_order, "_write", None)
    assert (Subset.open(store).read(0, 37) == first).all()
    assert len(list((store.path / "orders").glob("*.npy"))) == 1


def test_order_is_the_same_for_any_chunk(store, tmp_path_factory, monkeypatch):
    expected = Subset.open(store).read(0, 37)
    monkeypatch.setattr(document_order, "_CHUNK", 3)
    again = MemoryStore(tmp_path_factory.mktemp("again"), LENGTHS)
    assert (Subset.open(again).read(0, 37) == expected).all()


def test_order_file_has_the_documents_and_a_mark_behind_them(store):
    Subset.open(store)
    (path,) = (store.path / "orders").glob("*.npy")
    starts, documents = np.load(path)
    assert (starts[0], starts[-1], documents[-1]) == (0, sum(LENGTHS), -1)
    assert (np.diff(starts) == np.asarray(LENGTHS)[documents[:-1]]).all()


def test_truncated_order_is_recomputed(store):
    expected = Subset.open(store).read(0, 37)
    (cached,) = (store.path / "orders").glob("*.npy")
    content = cached.read_bytes()
    for damaged in (content[:150], content[:-9] + b"\x01" + content[-8:]):
        cached.write_bytes(damaged)
        assert (Subset.open(store).read(0, 37) == expected).all()
        assert cached.read_bytes() == content


def test_order_is_cached_for_the_user_if_the_store_is_read_only(store, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(cache))
    (store.path / "orders").write_text("a file in the way")
    assert len(Subset.open(store).read(0, 37)) == 37
    assert len(list((cache / "orders").glob("*.npy"))) == 1


def test_order_that_cannot_be_cached_is_refused_and_leaves_no_file(store, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(cache))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(document_order.os, "posix_fallocate", full)
    with pytest.raises(PlanError, match="No space left on device"):
        Subset.open(store)
    assert not list((cache / "orders").iterdir()) and not list((store.path / "orders").iterdir())
