"""Stores from folders that datatrove wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reptrain.store import Store, open_store
from reptrain.tokenization import tokenize

NUM_RANKS = 3
OPTIONS: dict[str, Any] = {"vocab_size": 400, "metadata_fields": ["metadata.rank"]}


@pytest.fixture(scope="module")
def lines(text_file: Path) -> list[dict[str, str]]:
    """The documents; rank R writes each third from R on."""
    return [json.loads(line) for line in text_file.read_text().splitlines()[:120]]


@pytest.fixture(scope="module")
def expected(lines: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of the same documents in the order of datatrove's files: by rank."""
    folder = tmp_path_factory.mktemp("plain")
    in_order = [
        {"text": line["text"], "id": line["id"], "metadata": {"rank": rank}}
        for rank in range(NUM_RANKS)
        for line in lines[rank::NUM_RANKS]
    ]
    (folder / "plain.jsonl").write_text("".join(json.dumps(line) + "\n" for line in in_order))
    tokenize([folder / "plain.jsonl"], folder / "store", **OPTIONS)
    return open_store(folder / "store")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_tokenize_reads_a_folder_of_datatrove(
    kind: str, lines: list[dict[str, str]], expected: Store, tmp_path: Path
) -> None:
    pytest.importorskip("datatrove", reason="datatrove is not installed")
    from datatrove.data import Document
    from datatrove.pipeline.writers import JsonlWriter, ParquetWriter

    folder = tmp_path / "output"
    for rank in range(NUM_RANKS):
        own = lines[rank::NUM_RANKS]
        # Compressed JSON lines are the default of its writer.
        writer = (JsonlWriter if kind == "jsonl" else ParquetWriter)(str(folder))
        documents = (Document(text=line["text"], id=line["id"], metadata={"rank": rank}) for line in own)
        assert len(list(writer.run(documents, rank=rank, world_size=NUM_RANKS))) == 40
    tokenize([folder], tmp_path / "store", **OPTIONS)
    found = open_store(tmp_path / "store")
    assert found.fingerprint == expected.fingerprint
    split = found.split("train")
    known = {line["id"]: rank for rank in range(NUM_RANKS) for line in lines[rank::NUM_RANKS]}
    for index in range(split.num_documents):
        metadata = split.document_metadata(index)
        assert int(next(iter(metadata.values()))) == known[split.document_id(index)]
