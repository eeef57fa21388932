"""Stores from folders that datatrove wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reptrain.store import open_store
from reptrain.tokenization import tokenize


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_tokenize_reads_a_folder_of_datatrove(kind: str, text_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("datatrove", reason="datatrove is not installed")
    from datatrove.data import Document
    from datatrove.pipeline.writers import JsonlWriter, ParquetWriter

    lines = [json.loads(line) for line in text_file.read_text().splitlines()[:120]]
    folder = tmp_path / "output"
    for rank in range(3):
        own = lines[rank::3]
        # Compressed JSON lines are the default of its writer.
        writer = (JsonlWriter if kind == "jsonl" else ParquetWriter)(str(folder))
        documents = (Document(text=line["text"], id=line["id"], metadata={"rank": rank}) for line in own)
        assert len(list(writer.run(documents, rank=rank, world_size=3))) == 40
    options = {"vocab_size": 400, "metadata_fields": ["metadata.rank"]}
    tokenize([folder], tmp_path / "store", **options)
    # The order of datatrove's files: by rank.
    plain = tmp_path / "plain.jsonl"
    in_order = [
        {"text": line["text"], "id": line["id"], "metadata": {"rank": rank}}
        for rank in range(3)
        for line in lines[rank::3]
    ]
    plain.write_text("".join(json.dumps(line) + "\n" for line in in_order))
    tokenize([plain], tmp_path / "expected", **options)
    found, expected = open_store(tmp_path / "store"), open_store(tmp_path / "expected")
    assert found.fingerprint == expected.fingerprint
    split = found.split("train")
    known = {line["id"]: rank for rank in range(3) for line in lines[rank::3]}
    for index in range(split.num_documents):
        metadata = split.document_metadata(index)
        assert int(next(iter(metadata.values()))) == known[split.document_id(index)]
