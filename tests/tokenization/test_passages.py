"""Documents cut into passages: every token stays, on one side, in pieces of about one size."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reptrain.errors import StoreError
from reptrain.store import Store, describe_text, open_store, verify
from reptrain.text import Document
from reptrain.text.tokenizer import Encoding
from reptrain.tokenization import tokenize
from reptrain.tokenization.encode import KeptDocument, _passages

WORDS = ["epoch", "token", "window", "shard", "store", "plan", "run", "audit", "exact", "ledger"]
Pieces = dict[str, list[tuple[str, list[int]]]]


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 1 to 200 words; an id that looks like a passage's among them."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("long") / "web.jsonl"
    rows = [
        {"text": " ".join(draw.choices(WORDS, k=draw.randint(1, 200))), "id": f"d{index}"}
        for index in range(50)
    ]
    path.write_text("\n".join(json.dumps(row) for row in [*rows, {"text": "run " * 40, "id": "d0#1"}]))
    return path


def pieces(store: Store) -> Pieces:
    """For each document, the split and tokens of its passages, in the order of the store."""
    found: Pieces = defaultdict(list)
    for name in ("train", "select", "report"):
        split = store.split(name)
        count = split.num_documents
        lengths = split.lengths(0, count)
        tokens = split.read(np.arange(count), np.zeros(count, int), lengths)
        for index, ids in enumerate(np.split(tokens, np.cumsum(lengths)[:-1])):
            document, _, number = split.document_id(index).rpartition("#")
            assert int(number) == len(found[document])
            found[document].append((name, ids.tolist()))
    return found


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(0, 200), min_size=1, max_size=4), most=st.integers(2, 50))
def test_passages_are_few_and_of_equal_length(lengths: list[int], most: int) -> None:
    ids = np.arange(sum(lengths), dtype=np.uint16)
    group = [KeptDocument("train", Document(f"d{n}", "web", "two words"), 9) for n in range(len(lengths))]
    encoding = Encoding(ids, np.array(lengths))
    passages = list(_passages(group, encoding, most, 999))
    assert np.array_equal(np.concatenate([ids[:0], *(part.tokens[:-1] for part in passages)]), ids)
    for index, length in enumerate(lengths):
        parts = [part for part in passages if part.document.id.startswith(f"d{index}#")]
        sizes = [len(part.tokens) - 1 for part in parts]
        assert sum(sizes) == length
        if length:
            assert max(sizes) + 1 <= most and max(sizes) - min(sizes) <= 1
            assert len(parts) == 1 or (len(parts) - 1) * (most - 1) < length
            assert sum(part.text_bytes for part in parts) == 9 and sum(part.words for part in parts) == 2
        assert [part.document.id for part in parts] == [f"d{index}#{n}" for n in range(len(parts))]
        assert all(part.tokens[-1] == 999 for part in parts)
    whole = list(_passages(group, encoding, None, 999))
    assert [len(part.tokens) - 1 for part in whole] == [length for length in lengths if length]


@pytest.mark.parametrize("most", [2, 9, 64, 10**9])
def test_tokenize_cuts_documents_into_passages(
    long_corpus: Path, model: Path, tmp_path: Path, most: int
) -> None:
    options = {"tokenizer": model, "held_out_fraction": 0.4}
    whole = tokenize([long_corpus], tmp_path / "whole", **options)
    manifest = tokenize([long_corpus], tmp_path / "s", passages=most, **options)
    store, uncut = open_store(tmp_path / "s"), open_store(tmp_path / "whole")
    cut = pieces(store)
    for name in ("train", "select", "report"):
        split = uncut.split(name)
        for index in range(split.num_documents):
            parts = cut.pop(split.document_id(index))
            assert {side for side, _ in parts} == {name}
            assert all(ids[-1] == store.eos_id and len(ids) <= most for _, ids in parts)
            joined = [token for _, ids in parts for token in ids[:-1]]
            assert joined == split.read([index], [0], split.lengths(index, 1)).tolist()[:-1]
        assert store.split(name).text_bytes == split.text_bytes
    assert not cut
    assert manifest.options.passages == most
    assert manifest.counts.kept == whole.counts.kept
    assert manifest.counts.passages == sum(info.documents for info in manifest.splits.values())
    assert manifest.sources[0].documents == whole.sources[0].documents
    assert sum(info.tokens for info in manifest.splits.values()) == manifest.sources[0].tokens
    assert verify(store.path).ok
    assert f"{manifest.counts.passages:,} of at most {most:,} tokens" in describe_text(store)


@pytest.mark.parametrize("most", [1, 0, -5])
def test_tokenize_refuses_passages_without_room_for_a_token(
    long_corpus: Path, tmp_path: Path, most: int
) -> None:
    with pytest.raises(StoreError, match=f"passages: must be at least 2 tokens, but got {most}"):
        tokenize([long_corpus], tmp_path / "s", passages=most)
    assert not (tmp_path / "s").exists()
