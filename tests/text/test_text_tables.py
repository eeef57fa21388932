"""Readers of Parquet, Arrow and packed JSON lines."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reptrain.errors import TextError
from reptrain.text import Document, read_documents
from reptrain.text.documents import Fields, Slice, Tag, cut_slice, read_slice

Write = Callable[[pa.Table, Path], None]


def write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, row_group_size=3)


def write_arrow_file(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def write_arrow_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


KINDS: list[tuple[Write, str]] = [
    (write_parquet, ".parquet"),
    (write_arrow_file, ".arrow"),
    (write_arrow_stream, ".arrow"),
]
every_kind = pytest.mark.parametrize(("write", "suffix"), KINDS)


def whole(path: Path) -> Slice:
    return Slice(path, path.name, "s", 0, path.stat().st_size)


@every_kind
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_read_slice_reads_tables_like_lines(
    tmp_path: Path, write: Write, suffix: str, kind: pa.DataType
) -> None:
    texts = [f"text {index % 4}\u2028 ü" for index in range(10)]
    ids = [None if index == 5 else index for index in range(10)]
    columns = {"other": pa.array(range(10)), "id": pa.array(ids), "text": pa.array(texts).cast(kind)}
    write(pa.table(columns), tmp_path / f"a{suffix}")
    expected = [
        Document(f"a{suffix}:6" if index is None else str(index), "a", text)
        for index, text in zip(ids, texts, strict=True)
    ]
    assert list(read_documents(tmp_path / f"a{suffix}")) == expected


@every_kind
@pytest.mark.parametrize("slice_bytes", [1, 400, 10**6])
def test_cut_slice_covers_a_table_once_and_keeps_the_row_numbers(
    tmp_path: Path, write: Write, suffix: str, slice_bytes: int
) -> None:
    path = tmp_path / f"a{suffix}"
    write(pa.table({"text": [f"row {index}" for index in range(20)]}), path)
    parts = cut_slice(whole(path), Fields(), slice_bytes)
    blocks = 1 if write is write_arrow_stream or slice_bytes > 10**5 else 7
    assert len(parts) == blocks if slice_bytes != 400 else 1 <= len(parts) <= 7
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert (parts[0].start, parts[-1].stop) == (0, path.stat().st_size)
    found = [document for part in parts for document in read_slice(part, Fields())]
    assert found == [Document(f"a{suffix}:{index + 1}", "s", f"row {index}") for index in range(20)]


@every_kind
def test_read_slice_keeps_fields_and_tags(tmp_path: Path, write: Write, suffix: str) -> None:
    rows = [
        {"text": "a", "meta": {"url": "u", "n": 1}, "when": datetime.date(2024, 2, 3), "score": 0.5},
        {"text": "b", "meta": {"url": None, "n": 2}, "when": None, "score": math.nan},
        {"text": "c", "meta": None, "when": None, "score": None},
    ]
    write(pa.Table.from_pylist(rows), tmp_path / f"a{suffix}")
    fields = Fields(
        id="meta.n",
        metadata=("meta.url", "when", "score"),
        tags=(Tag(None, "kind", "k"), Tag("s", "kind", "own"), Tag("t", "no", "")),
    )
    found = list(read_slice(whole(tmp_path / f"a{suffix}"), fields))
    assert [document.id for document in found] == ["1", "2", f"a{suffix}:3"]
    assert [json.loads(document.metadata or "") for document in found] == [
        {"meta.url": "u", "when": "2024-02-03", "score": 0.5, "kind": "own"},
        {"score": None, "kind": "own"},
        {"kind": "own"},
    ]
    assert found[0].metadata is not None and " " not in found[0].metadata


def test_read_slice_keeps_fields_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        {"text": "a", "meta": {"tags": [1, "ü"]}},
        {"text": "b", "meta": 3, "meta.tags": "literal"},
        {"text": "c"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = [document.metadata for document in read_slice(whole(path), Fields(metadata=("meta.tags",)))]
    assert found == ['{"meta.tags":[1,"ü"]}', '{"meta.tags":"literal"}', None]


@every_kind
@pytest.mark.parametrize(
    ("table", "fields", "message"),
    [
        (
            {"body": ["a"], "id": ["1"]},
            {},
            r"must have a column 'text' of type string, but got the columns body",
        ),
        ({"text": [1]}, {}, r"must have a column 'text' of type string, but got a column of type int64"),
        ({"text": [0.5]}, {}, r"got a column of type double"),
        ({"text": [b"a"]}, {}, r"got a column of type binary"),
        (
            {"text": ["a"]},
            {"metadata": ("url",)},
            r"must have the column 'url' of the metadata, but got the col",
        ),
        ({"text": [{"body": "a"}]}, {}, r"got a column of type struct"),
        ({"text": [{"body": "a"}]}, {"text": "text.title"}, r"a column 'text\.title' of type string"),
        ({"text": ["a", None]}, {}, r"row 2: .*but got null under 'text'"),
        ({"text": [None]}, {}, r"row 1: .*but got null under 'text'"),
        ({"text": ["a"], "b": [b"\x00"]}, {"metadata": ("b",)}, r"row 1: must hold metadata that JSON can"),
    ],
)
def test_read_slice_refuses_tables_by_name(
    tmp_path: Path, write: Write, suffix: str, table: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    path = tmp_path / f"a{suffix}"
    write(pa.table(table), path)
    with pytest.raises(TextError, match=message) as caught:
        list(read_slice(whole(path), Fields(**fields)))
    assert str(path) in str(caught.value)


@every_kind
def test_read_slice_refuses_a_duplicate_column(tmp_path: Path, write: Write, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(pa.table([["a"], ["b"], ["c"]], names=["text", "text", "other"]), path)
    with pytest.raises(TextError, match="must have each column once, but got 2 columns 'text'"):
        list(read_slice(whole(path), Fields()))
    write(pa.table([["a"], ["b"], ["c"]], names=["x", "x", "text"]), path)
    assert [document.text for document in read_slice(whole(path), Fields())] == ["c"]


@every_kind
def test_cut_slice_refuses_an_empty_table(tmp_path: Path, write: Write, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(pa.table({"text": pa.array([], pa.string())}), path)
    if write is write_arrow_stream:
        assert [list(read_slice(part, Fields())) for part in cut_slice(whole(path), Fields(), 1)] == [[]]
        return
    with pytest.raises(TextError, match="must hold documents, but got 0 rows"):
        cut_slice(whole(path), Fields(), 1)


@every_kind
@pytest.mark.parametrize("keep", [0.3, 0.7, -8, -1])
def test_read_slice_refuses_a_table_cut_short(tmp_path: Path, write: Write, suffix: str, keep: float) -> None:
    path = tmp_path / f"a{suffix}"
    write(pa.table({"text": [f"row {index}" for index in range(200)]}), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep < 0 else keep * len(content))])
    with pytest.raises(TextError, match="must be a readable file"):
        for part in cut_slice(whole(path), Fields(), 1):
            list(read_slice(part, Fields()))


def test_read_documents_reads_zst_of_several_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    codec = pa.Codec("zstd")
    frames = [codec.compress(json.dumps({"text": text}).encode() + b"\n", asbytes=True) for text in "abc"]
    path.write_bytes(b"".join(frames))
    assert [(document.id, document.text) for document in read_documents(path)] == [
        ("a.jsonl.zst:1", "a"),
        ("a.jsonl.zst:2", "b"),
        ("a.jsonl.zst:3", "c"),
    ]


@pytest.mark.parametrize("cut", [-1, -20, 10, 3])
def test_read_documents_refuses_zst_cut_short(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl.zst"
    lines = "".join(json.dumps({"text": f"text {index**3}"}) + "\n" for index in range(500))
    with pa.CompressedOutputStream(str(path), "zstd") as packed:
        packed.write(lines.encode())
    assert len(list(read_documents(path))) == 500
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(TextError, match="must be a readable file"):
        list(read_documents(path))


@pytest.mark.parametrize(("text", "got"), [("null", "null under 'text'"), ("NaN", "NaN under 'text'")])
def test_read_documents_refuses_null_and_nan(tmp_path: Path, text: str, got: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a"}}\n{{"text": {text}}}\n')
    with pytest.raises(TextError, match=rf"a\.jsonl:2: .*but got {got}"):
        list(read_documents(path))


def test_read_slice_of_a_large_row_group_keeps_little_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = ["x" * 10_000 + str(index) for index in range(6_000)]
    pq.write_table(pa.table({"text": texts, "other": texts}), path, row_group_size=6_000, compression="zstd")
    del texts
    before, most = pa.total_allocated_bytes(), 0
    for number, document in enumerate(read_slice(whole(path), Fields())):
        assert len(document.text) > 10_000
        if number % 100 == 0:
            most = max(most, pa.total_allocated_bytes())
    assert number == 5_999
    # Of 60 MB in the column.
    assert most - before < 30e6
