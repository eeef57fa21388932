"""One small store for the audits, and a run on it."""

from __future__ import annotations

import json
from random import Random

import pytest
from audited_runs import trained

from reptrain.store import open_store
from reptrain.tokenization import tokenize


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A store of 400 short documents."""
    random = Random(0)
    words = ["".join(random.choices("abcdefgh", k=random.randint(2, 7))) for _ in range(80)]
    texts = [" ".join(random.choices(words, k=random.randint(3, 25))) for _ in range(400)]
    folder = tmp_path_factory.mktemp("audit")
    source = folder / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenize([source], folder / "store", vocab_size=128, num_sentinels=4)
    return open_store(folder / "store")


@pytest.fixture
def run(store, tmp_path):
    """A run that is done and exact, 2.5 epochs in steps of 8 windows; `config` may change it."""
    return trained(store, tmp_path / "run")
