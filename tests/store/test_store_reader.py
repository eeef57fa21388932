"""Stores read, described and verified."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reptrain.errors import StoreError, TokenizerError
from reptrain.store import Split, describe, describe_text, open_store, verify
from reptrain.store.hashing import file_sha256
from reptrain.tokenization import tokenize


@pytest.fixture(scope="module")
def sealed(corpus: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of several shards with several batches each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reptrain.tokenization.jobs._SMALLEST_JOB_BYTES", 5_000)
        patch.setattr("reptrain.store.shards.BATCH_TOKENS", 500)
        out = tmp_path_factory.mktemp("sealed") / "store"
        tokenize([corpus], out, tokenizer=model, held_out_fraction=0.2)
    return out


@pytest.fixture
def copy(sealed: Path, tmp_path: Path) -> Path:
    """A store that a test may damage."""
    return Path(shutil.copytree(sealed, tmp_path / "copy"))


@pytest.fixture(scope="module")
def train(sealed: Path) -> Split:
    return open_store(sealed).split("train")


@pytest.fixture(scope="module")
def documents(train: Split) -> list[np.ndarray[Any, Any]]:
    """Every training document, read one by one."""
    lengths = train.lengths(0, train.num_documents)
    return [train.read([index], [0], [length]) for index, length in enumerate(lengths)]


@settings(deadline=None)
@given(data=st.data())
def test_read_concatenates_pieces(
    train: Split, documents: list[np.ndarray[Any, Any]], data: st.DataObject
) -> None:
    picked = data.draw(st.lists(st.integers(0, len(documents) - 1), max_size=12))
    pieces = []
    for index in picked:
        offset = data.draw(st.integers(0, len(documents[index])))
        pieces.append((index, offset, data.draw(st.integers(0, len(documents[index]) - offset))))
    doc, offset, length = np.array(pieces, np.int64).reshape(-1, 3).T
    expected = [documents[d][o : o + n] for d, o, n in pieces]
    found = train.read(doc, offset, length)
    assert found.dtype == np.uint16
    assert found.tolist() == np.concatenate([np.zeros(0, np.uint16), *expected]).tolist()


def test_threads_read_shards_that_none_has_read_before(sealed: Path) -> None:
    whole = open_store(sealed).split("train")
    lengths = whole.lengths(0, whole.num_documents)
    expected = [whole.read([index], [0], [length]) for index, length in enumerate(lengths)]
    for _ in range(5):
        fresh = open_store(sealed).split("train")
        with ThreadPoolExecutor(8) as pool:
            parts = ([index] for index in range(len(lengths))), repeat([0]), ([length] for length in lengths)
            found = pool.map(fresh.read, *parts)
            assert all(map(np.array_equal, found, expected))


@settings(deadline=None)
@given(data=st.data())
def test_lengths_agree_with_the_documents(
    train: Split, documents: list[np.ndarray[Any, Any]], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(documents)))
    count = data.draw(st.integers(0, len(documents) - first))
    found = train.lengths(first, count)
    assert found.dtype == np.int64
    assert found.tolist() == [len(document) for document in documents[first : first + count]]


def test_lengths_sum_to_the_tokens_of_the_manifest(sealed: Path) -> None:
    store = open_store(sealed)
    for name in ("train", "select", "report"):
        split = store.split(name)
        assert split.num_documents == store.manifest.splits[name].documents
        assert split.lengths(0, split.num_documents).sum() == split.num_tokens


@pytest.mark.parametrize(
    "piece", [(-1, 0, 1), (10**6, 0, 1), (0, -1, 1), (0, 0, -1), (0, 0, 10**6), (3, 10**6, 0)]
)
def test_read_refuses_ranges_outside_of_a_document(train: Split, piece: tuple[int, int, int]) -> None:
    with pytest.raises(IndexError):
        train.read(*([value] for value in piece))


def test_split_refuses_indices_beyond_its_documents(train: Split) -> None:
    for first, count in [(-1, 1), (0, train.num_documents + 1), (0, -1)]:
        with pytest.raises(IndexError):
            train.lengths(first, count)
    with pytest.raises(IndexError):
        train.document_id(train.num_documents)


def test_open_store_refuses_an_unknown_split(sealed: Path) -> None:
    with pytest.raises(StoreError, match="must be one of train, select, report, but got 'test'"):
        open_store(sealed).split("test")


def damage_byte(folder: Path) -> None:
    path = folder / "train-00001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_and_rehash(folder: Path) -> None:
    """Swap one token and put the shard's new hash into the manifest."""
    store = open_store(folder)
    tokens = store.split("train").read([0], [0], [1])
    path = folder / "train-00000.arrow"
    content = path.read_bytes()
    start = content.index(store.split("train").read([0], [0], [8]).tobytes())
    path.write_bytes(content[:start] + (tokens + 1).tobytes() + content[start + 2 :])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["sha256"] = file_sha256(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit_count(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["counts"]["duplicates"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit_fingerprint(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["fingerprint"] = "0" * 32
    (folder / "manifest.json").write_text(json.dumps(manifest))


def drop_shard(folder: Path) -> None:
    (folder / "select-00000.arrow").unlink()


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.model"
    path.write_bytes(path.read_bytes().replace(b"<extra_id_0>", b"<extra_id_9>"))


def test_verify_finds_a_sealed_store_whole(sealed: Path) -> None:
    done: list[tuple[str, int, int]] = []
    report = verify(sealed, lambda *step: done.append(step))
    manifest = open_store(sealed).manifest
    assert report.ok and report.problems == []
    assert report.documents == manifest.counts.kept
    assert report.shards == len(done) and done[-1][1] == done[-1][2]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (damage_byte, "train-00001.arrow: SHA-256"),
        (damage_and_rehash, "split train: totals or digest differ"),
        (edit_count, "do not add up"),
        (edit_fingerprint, "fingerprint 0000"),
        (drop_shard, "select-00000.arrow: No such file"),
        (other_tokenizer, "tokenizer.model: "),
    ],
)
def test_verify_names_every_damage(copy: Path, damage: Callable[[Path], None], problem: str) -> None:
    damage(copy)
    report = verify(copy)
    assert not report.ok
    assert any(problem in found for found in report.problems)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", None, "an interrupted one resumes"),
        ("manifest.json", b"{}", "must have a manifest of the format reptrain-store-2"),
        ("manifest.json", b'{"format": "reptrain-store-1"}', "Read it with the version of reptrain"),
        ("manifest.json", b'{"format": "reptrain-store-3"}', "Read it with a later version of reptrain"),
        (
            "train-00000.arrow",
            None,
            "train-00000.arrow: must be unchanged since the store was completed, but got No such file",
        ),
        ("train-00000.arrow", b"short", "but got 5 bytes, where the manifest has"),
        ("tokenizer.model", None, "tokenizer.model: must be unchanged since the store was completed"),
    ],
)
def test_open_store_refuses_an_incomplete_store(
    copy: Path, name: str, content: bytes | None, message: str
) -> None:
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(StoreError, match=message):
        open_store(copy)


def test_store_refuses_another_tokenizer_and_another_shard(copy: Path) -> None:
    other_tokenizer(copy)
    with pytest.raises(TokenizerError, match="must be the one that made the store"):
        open_store(copy).tokenizer()
    size = (copy / "train-00000.arrow").stat().st_size
    (copy / "train-00000.arrow").write_bytes(bytes(size))
    with pytest.raises(StoreError, match="must match the manifest"):
        open_store(copy).split("train").lengths(0, 1)


def test_describe_gives_the_counts(sealed: Path) -> None:
    store = open_store(sealed)
    described = json.loads(json.dumps(describe(store)))
    assert described["fingerprint"] == store.fingerprint
    assert described["splits"]["train"]["tokens"] == store.split("train").num_tokens
    text = describe_text(store)
    assert f"{store.split('train').num_tokens:,}" in text and "web" in text
