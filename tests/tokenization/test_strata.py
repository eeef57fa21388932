"""Held-out documents are spread over sources, files and folders."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reptrain.store import describe, describe_text, open_store
from reptrain.tokenization import tokenize
from reptrain.tokenization.strata import find_thresholds

LANGUAGES = {"de": "Haus Baum Fluss Berg", "zh": "山 水 火 木", "ar": "بيت نهر جبل شجرة"}


def texts_of(language: str, count: int) -> list[str]:
    words = LANGUAGES[language].split()
    return [" ".join(f"{words[(n * k) % len(words)]}{n}" for k in range(1, 9)) for n in range(count)]


def write_rows(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def held_out(store: Path) -> dict[str, Counter[str]]:
    """Documents of each held-out split by the file or folder that they came from."""
    opened = open_store(store)
    return {
        name: Counter(
            next(lang for lang in LANGUAGES if lang in opened.split(name).document_id(index))
            for index in range(opened.split(name).num_documents)
        )
        for name in ("select", "report")
    }


@pytest.mark.parametrize("form", ["files", "folder of files", "folders of texts"])
def test_tokenize_holds_out_as_much_of_each_language(tmp_path: Path, form: str) -> None:
    source = tmp_path / "texts"
    for language in LANGUAGES:
        texts = texts_of(language, 150)
        if form == "folders of texts":
            for number, text in enumerate(texts):
                path = source / language / f"{language}-{number}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        else:
            write_rows(source / f"{language}.jsonl", texts)
    sources = sorted(source.iterdir()) if form == "files" else [source]
    tokenize(sources, tmp_path / "s", vocab_size=200, num_sentinels=0, held_out_fraction=0.05)
    for counts in held_out(tmp_path / "s").values():
        # 2.5 % of 150 are 3.75.
        assert sum(counts.values()) == 11 and set(counts.values()) <= {3, 4}


@pytest.mark.parametrize("dedup", ["none", "group", "minhash"])
def test_tokenize_holds_out_the_same_texts_for_any_order_of_the_sources(tmp_path: Path, dedup: str) -> None:
    paths = [write_rows(tmp_path / f"{name}.jsonl", texts_of(name, 90)) for name in LANGUAGES]
    options = {"vocab_size": 100, "num_sentinels": 0, "held_out_fraction": 0.1, "dedup": dedup}
    forward = tokenize(paths, tmp_path / "a", **options)  # type: ignore[arg-type]
    backward = tokenize(paths[::-1], tmp_path / "b", **options, processes=2)  # type: ignore[arg-type]
    count = [
        [manifest.splits[name].documents for name in ("select", "report")] for manifest in (forward, backward)
    ]
    assert count[0] == count[1]
    assert held_out(tmp_path / "a") == held_out(tmp_path / "b")


def test_tokenize_of_a_large_source_holds_out_by_the_content_alone(tmp_path: Path) -> None:
    # Two stores that share texts: what one holds out must not be trained on in the other.
    texts = texts_of("de", 3000)
    ids = []
    for name, part in (("one", texts[:2000]), ("two", texts[1000:])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"id": text, "text": text}) + "\n" for text in part))
        tokenize([path], tmp_path / name, vocab_size=40, num_sentinels=0, held_out_fraction=0.1)
        split = open_store(tmp_path / name).split("select")
        ids.append({split.document_id(index) for index in range(split.num_documents)})
    shared = set(texts[1000:2000])
    assert ids[0] & shared == ids[1] & shared != set()


def test_tokenize_takes_numbered_shards_for_one_text(tmp_path: Path) -> None:
    texts = texts_of("zh", 60)
    options = {"vocab_size": 40, "num_sentinels": 0, "held_out_fraction": 0.2}
    write_rows(tmp_path / "whole" / "zh.jsonl", texts)
    for number in range(6):
        write_rows(tmp_path / "parts" / f"zh-0{number}-of-06.jsonl", texts[10 * number : 10 * number + 10])
    whole, parts = (
        tokenize([tmp_path / name], tmp_path / f"{name}-store", **options)  # type: ignore[arg-type]
        for name in ("whole", "parts")
    )
    assert whole.fingerprint == parts.fingerprint


@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=20),
    fraction=st.sampled_from([0.02, 0.05, 0.2, 0.5]),
    seed=st.integers(0, 999),
)
def test_find_thresholds_hold_out_the_share_of_all_and_of_each(
    sizes: list[int], fraction: float, seed: int
) -> None:
    draw = np.random.default_rng(seed).integers(2**64, size=sum(sizes), dtype=np.uint64)
    stratum = np.repeat(np.arange(len(sizes)), sizes)
    thresholds = find_thresholds(np.array(sizes), [(draw, stratum)], fraction)
    split = thresholds.split_of(draw, stratum)
    counts = np.array([np.bincount(split[stratum == n], minlength=3) for n in range(len(sizes))])
    small = np.array(sizes) * fraction < 64
    assert (counts[small, 1] == counts[small, 2]).all()
    # Rounding is carried on: within one document of each stratum, and of all small ones together.
    expected = np.array(sizes)[small] * fraction / 2
    assert (abs(counts[small, 1] - expected) <= 1).all()
    assert abs(counts[small, 1].sum() - expected.sum()) <= 1


def test_store_show_warns_of_splits_with_few_documents(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "de.jsonl", texts_of("de", 100))
    tokenize([path], tmp_path / "s", vocab_size=40, num_sentinels=0)
    (warning,) = describe(open_store(tmp_path / "s"))["warnings"]
    assert "select (3 documents" in warning and "report (3 documents" in warning
    assert f"WARNING: {warning}" in describe_text(open_store(tmp_path / "s"))


def test_a_sealed_store_of_the_split_before_is_read_and_used(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "de.jsonl", texts_of("de", 100))
    tokenize([path], tmp_path / "s", vocab_size=40, num_sentinels=0)
    manifest = tmp_path / "s" / "manifest.json"
    data = json.loads(manifest.read_text())
    assert data["options"].pop("split_version") == 2
    manifest.write_text(json.dumps(data))
    again = tokenize([path], tmp_path / "s", vocab_size=40, num_sentinels=0)
    assert again.options.split_version == 1
