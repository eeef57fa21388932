"""Every command of docs/guides/sources.md is run, on files and servers like those that it names."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers
from typer.testing import CliRunner

from reptrain.store import open_store

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "sources.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of everything that the page names; URLs lead to memory."""
    rows: list[dict[str, Any]] = [
        {
            "text": text,
            "body": {"text": text},
            "meta": {"url": f"u{index}", "language": "en"},
            "date": "2024-02-03",
        }
        for index, text in enumerate(texts)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    monkeypatch.chdir(tmp_path)
    for name in ("articles.jsonl", "stories.jsonl"):
        Path(name).write_bytes(lines)
    with pa.CompressedOutputStream("web.jsonl.zst", "zstd") as packed:
        packed.write(lines)
    table = pa.Table.from_pylist(rows)
    Path("data/deep").mkdir(parents=True)
    for name in ("more.parquet", "data/a.parquet", "data/deep/b.parquet"):
        pq.write_table(table, name)
    Path("saved/train").mkdir(parents=True)
    with pa.ipc.new_stream("saved/train/data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    Path("saved/train/state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    memory = fsspec.filesystem("memory")
    memory.pipe("/example.org/text/web.jsonl.gz", gzip.compress(lines))
    memory.pipe("/bucket/text/0.jsonl", lines)
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|stop|>"]
    library.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    library.save("tokenizer.json")
    return tmp_path


def test_every_command_of_the_page_works(folder: Path) -> None:
    from reptrain.cli import app

    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL))
    commands = [shlex.split(line) for line in blocks.replace("\\\n", " ").splitlines() if line]
    assert len(commands) == 11
    for _, *words in commands:
        words = [re.sub(r"^(https|s3)://", "memory://", word) for word in words]
        if words[0] == "tokenize":
            words += ["--processes", "1"]
        ended = CliRunner().invoke(app, words)
        assert ended.exit_code == 0, (words, ended.output, ended.exception)
    stores = sorted(path.name for path in Path("stores").iterdir())
    assert stores == sorted(re.findall(r"--out stores/(\w+)", PAGE))
    split = open_store(Path("stores/fields")).split("train")
    (shown,) = re.findall(r"document_metadata\(0\)  # (.*)", PAGE)
    assert repr(split.document_metadata(0)) == shown and split.document_id(0).startswith("u")
    tagged = {source.name: source.tags for source in open_store(Path("stores/tagged")).manifest.sources}
    assert tagged["articles"] == {"license": "cc-by"}
    assert open_store(Path("stores/eos")).eos_id == 1
