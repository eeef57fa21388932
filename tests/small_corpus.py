"""A small corpus and a tokenizer for it; jobs so small that the corpus makes several."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from reptrain.text import train_tokenizer

WORDS = ["epoch", "token", "window", "shard", "store", "plan", "run", "audit", "exact", "ledger"]


def make_texts(count: int) -> list[str]:
    """Texts of 1 to 30 words; every seventh repeats an earlier one, every eleventh is blank."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 30))) + f" {index}" for index in range(count)]
    return [
        "  \n" if index % 11 == 5 else texts[index // 2] if index % 7 == 6 else text
        for index, text in enumerate(texts)
    ]


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptrain.tokenization.jobs._SMALLEST_JOB_BYTES", 5_000)
    # No power cut is tested, and a busy disk would make the tests slow.
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return make_texts(200)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "web.jsonl"
    lines = [json.dumps({"text": text, "id": f"d{index}"}) for index, text in enumerate(texts)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.model"
    train_tokenizer(iter(texts), path, vocab_size=80, num_sentinels=4)
    return path


@pytest.fixture(scope="session")
def files_of() -> Callable[[Path], dict[str, bytes]]:
    """The files of a folder by name."""
    return lambda folder: {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
