"""13-grams of held-out text that also occur in the training text."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reptrain.errors import StoreError
from reptrain.store import Store, open_store, verify
from reptrain.store.overlap import NGRAM, ngram_hashes
from reptrain.tokenization import tokenize

WORDS = ["epoch", "token", "window", "shard", "store", "plan", "run", "audit", "exact", "ledger"]
Gram = tuple[int, ...]


def grams(store: Store, split: str) -> dict[str, list[Gram]]:
    """The plain definition: the 13-grams of each document, EOS left out."""
    part = store.split(split)
    tokens = {
        part.document_id(index): part.read([index], [0], part.lengths(index, 1))[:-1].tolist()
        for index in range(part.num_documents)
    }
    return {
        name: [tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)] for name, ids in tokens.items()
    }


def flat(documents: dict[str, list[Gram]]) -> Iterator[Gram]:
    for found in documents.values():
        yield from found


@pytest.fixture(scope="module")
def leaky_texts() -> list[str]:
    """Random words, far from one another; later documents quote some earlier ones."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 60))) for _ in range(160)]
    return texts + [" ".join(draw.choices(WORDS, k=8)) + " " + text for text in texts[::7]]


def make(folder: Path, texts: Sequence[str], model: Path, **options: object) -> Store:
    lines = [json.dumps({"text": text, "id": f"d{index}"}) for index, text in enumerate(texts)]
    (folder / "web.jsonl").write_text("\n".join(lines))
    tokenize([folder / "web.jsonl"], folder / "s", tokenizer=model, held_out_fraction=0.4, **options)
    return open_store(folder / "s")


@settings(max_examples=80, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 3), max_size=40), min_size=1, max_size=8),
    chunk=st.sampled_from([1, 5, 14, 1 << 18]),
    skipped=st.integers(0, 3),
)
def test_ngram_hashes_are_those_of_the_windows_in_the_documents(
    documents: list[list[int]], chunk: int, skipped: int
) -> None:
    ended = [[*ids, 9] for ids in documents]
    offsets = np.cumsum([0, *map(len, ended)])
    tokens = np.array([token for ids in ended for token in ids], np.uint16)
    first = min(skipped, len(documents) - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reptrain.store.overlap._CHUNK_TOKENS", chunk)
        parts = list(ngram_hashes(tokens, offsets[first:].astype(np.int32)))
    found = [pair for hashes, at in parts for pair in zip(at.tolist(), hashes.tolist(), strict=True)]
    expected = {
        int(start) + place: tuple(ids[place : place + NGRAM])
        for start, ids in zip(offsets[first:], documents[first:], strict=False)
        for place in range(len(ids) - NGRAM + 1)
    }
    assert [at for at, _ in found] == list(expected)
    by_hash = {hash_: expected[at] for at, hash_ in found}
    assert len(by_hash) == len(set(expected.values()))
    assert all(by_hash[hash_] == expected[at] for at, hash_ in found)


def test_verify_counts_the_overlap_as_sets_do(leaky_texts: list[str], model: Path, tmp_path: Path) -> None:
    store = make(tmp_path, leaky_texts, model)
    train = set(flat(grams(store, "train")))
    report = verify(store.path, overlap=True, max_overlap=1)
    assert report.ok
    for found, split in zip(report.overlap, ("select", "report"), strict=True):
        documents = grams(store, split)
        every = list(flat(documents))
        assert (found.split, found.sampled) == (split, 1)
        assert (found.ngrams, found.distinct) == (len(every), len(set(every)))
        assert found.ngrams_shared == sum(gram in train for gram in every) > 0
        assert found.distinct_shared == len(set(every) & train)
        shared = {name: sum(gram in train for gram in own) for name, own in documents.items()}
        worst = sorted((count for count in shared.values() if count), reverse=True)[:10]
        assert [document.shared for document in found.documents] == worst
        assert all(shared[document.id] == document.shared for document in found.documents)
        assert all(len(documents[document.id]) == document.ngrams for document in found.documents)


def test_verify_finds_a_held_out_document_in_the_training_text(model: Path, tmp_path: Path) -> None:
    draw = random.Random(1)
    texts = ["".join(draw.choices(string.ascii_lowercase + " ", k=200)) for _ in range(60)]
    (tmp_path / "a").mkdir()
    clean = make(tmp_path / "a", texts, model, dedup="none")
    assert all(found.ngrams_shared == 0 for found in verify(clean.path, overlap=True).overlap)
    leaked = clean.split("report").document_id(0)
    planted = f"{draw.choice(WORDS)} {texts[int(leaked[1:])]}"
    (tmp_path / "b").mkdir()
    for extra in range(100):
        # One of the copies, each with another end, falls into train.
        store = make(tmp_path / "b", [*texts, f"{planted} {extra}"], model, dedup="none")
        in_report, in_train = (
            {part.document_id(index) for index in range(part.num_documents)}
            for part in (store.split("report"), store.split("train"))
        )
        if leaked in in_report and f"d{len(texts)}" in in_train:
            break
        for path in store.path.glob("*"):
            path.unlink()
    report = verify(store.path, overlap=True, max_overlap=0.001)
    assert not report.ok
    (problem,) = report.overlap_problems
    assert not report.problems
    assert problem.startswith("split report: ") and f"most in {leaked} (" in problem
    worst = report.overlap[1].documents[0]
    assert worst.id == leaked and worst.shared > 0.9 * worst.ngrams
    assert report.overlap[0].ngrams_shared == 0
    assert verify(store.path, overlap=True, max_overlap=1).ok
    assert verify(store.path).ok and not verify(store.path).overlap


def test_verify_samples_a_large_held_out_text(
    leaky_texts: list[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path, leaky_texts, model)
    whole = verify(store.path, overlap=True, max_overlap=1).overlap
    held_out = sum(store.split(name).num_tokens for name in ("select", "report"))
    monkeypatch.setattr("reptrain.store.overlap._SAMPLE", held_out // 2)
    for found, every in zip(verify(store.path, overlap=True, max_overlap=1).overlap, whole, strict=True):
        assert found.sampled == pytest.approx(0.5, abs=0.01)
        # Five standard deviations of a coin's.
        assert abs(found.distinct - every.distinct / 2) < 2.5 * every.distinct**0.5
        assert abs(found.distinct_shared - every.distinct_shared / 2) < 2.5 * every.distinct_shared**0.5
        assert f"(of a sample of {found.sampled:.2%})" in found.text()


def test_verify_measures_no_overlap_of_a_damaged_store(
    leaky_texts: list[str], model: Path, tmp_path: Path
) -> None:
    store = make(tmp_path, leaky_texts, model)
    shard = next(store.path.glob("train-*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    report = verify(store.path, overlap=True)
    assert not report.ok and not report.overlap


def test_verify_counts_no_overlap_of_documents_too_short_for_any(model: Path, tmp_path: Path) -> None:
    store = make(tmp_path, [f"run {index}" for index in range(60)], model)
    report = verify(store.path, overlap=True, max_overlap=0)
    assert report.ok
    assert [(found.ngrams, found.share, found.documents) for found in report.overlap] == [(0, 0.0, ())] * 2


@pytest.mark.parametrize("limit", [-0.1, 1.5])
def test_verify_refuses_a_limit_that_is_no_share(corpus: Path, tmp_path: Path, limit: float) -> None:
    with pytest.raises(StoreError, match="max_overlap: must be between 0 and 1"):
        verify(tmp_path, max_overlap=limit)


def test_verify_reports_its_progress_in_bytes(leaky_texts: list[str], model: Path, tmp_path: Path) -> None:
    store = make(tmp_path, leaky_texts, model)
    steps: list[tuple[str, int, int]] = []
    progress: Callable[[str, int, int], None] = lambda *step: steps.append(step)  # noqa: E731
    verify(store.path, progress, overlap=True)
    compared = [(done, total) for stage, done, total in steps if stage == "compare held-out text"]
    assert compared[-1][0] == compared[-1][1] > 0
