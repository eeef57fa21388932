"""Readers of documents."""

from __future__ import annotations

import gzip
import itertools
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reptrain.errors import TextError
from reptrain.text import Document, read_documents, stdlib_documents
from reptrain.text.documents import Fields, Slice, count_newlines, cut_lines, read_slice


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_read_documents_takes_a_txt_file_as_one_document(tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_bytes("\ufeffone\r\nzwei ü\n".encode())
    assert list(read_documents(path)) == [Document("poem.txt", "poem", "one\r\nzwei ü\n")]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_read_documents_names_lines_without_id_by_file_and_line(tmp_path: Path, suffix: str) -> None:
    lines = '{"text": "a"}\n\n{"text": "b", "id": 7}\r\n{"text": "c", "id": null}'
    path = tmp_path / f"web{suffix}"
    path.write_bytes(gzip.compress(lines.encode()) if suffix.endswith("gz") else lines.encode())
    assert list(read_documents(path, source="w")) == [
        Document(f"web{suffix}:1", "w", "a"),
        Document("7", "w", "b"),
        Document(f"web{suffix}:4", "w", "c"),
    ]


def test_read_documents_takes_other_fields(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"body": "x", "url": "u", "text": 3})
    assert list(read_documents(path, text_field="body", id_field="url")) == [Document("u", "a", "x")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes"),
        (b"\n \n", "blank lines only"),
        (b'{"text": "a"}\nnot json\n', r"bad.jsonl:2: must be a JSON object, but got 'not json'"),
        (b'{"text": "a"}\n["a"]\n', r"bad.jsonl:2: must be a JSON object, but got a list"),
        (b'{"body": "a", "id": 1}\n', r"bad.jsonl:1: .* under 'text', but got body, id"),
        (b'{"text": 5}\n', r"bad.jsonl:1: .* but got text of type int"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"bad.jsonl:2: must be UTF-8, but got byte 0xff at offset 10"),
        (b'{"text": "\\ud800"}\n', r"bad.jsonl:1: must hold valid Unicode"),
        (b"[" * 100_000 + b"\n", r"bad.jsonl:1: must be JSON with fewer .* got 100,000 levels of nesting"),
        (b'{"text": "a\tb"}', r"bad.jsonl:1: must be JSON, but got a raw tab in a string at column 12\."),
        (
            b'{"text": "a", "n": ' + b"7" * 5000 + b"}",
            r"bad.jsonl:1: .* got a number of 5,000 digits at column",
        ),
        (b'{"text": "a", "x": {"y": 1, "y": 2}}', r"bad.jsonl:1: .* got the key 'y' twice in one object"),
        (b'{"text": "a"} {"text": "b"}', r"bad.jsonl:1: .* more text after the first value, at column 15"),
        (b'{\n "text": "a"\n}', r"bad.jsonl:1: .* an end inside a value that begins before column 2"),
        (b'{"text": "a\nb"}', r"bad.jsonl:1: .* no closing quote for the string at column 10"),
        (b"{\"text\": 'a'}", r"bad.jsonl:1: .* expecting value at column 10"),
        (b'{"text": "a", "id": [1]}', r"bad.jsonl:1: must have a text or a number as its id, but got list"),
        (b'{"text": "a", "id": true}', r"bad.jsonl:1: .* as its id, but got bool under 'id'"),
        (b'{"text": "a"}\0', r"bad.jsonl:1: must be text in UTF-8, but got a NUL byte at offset 13"),
        ('{"text": "a"}'.encode("utf-16"), r"bad.jsonl:1: must be UTF-8, but got UTF-16.*iconv -f UTF-16"),
        (gzip.compress(b"{}", mtime=0), r"bad.jsonl:1: must be text in UTF-8, but got gzip data"),
    ],
)
def test_read_documents_refuses_bad_lines_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(TextError, match=message):
        list(read_documents(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"a\xffa\x00", "must be UTF-8, but got byte 0xff at offset 1"),
        ("a.txt", b"\xff\xfea\x00", "must be UTF-8, but got UTF-16, by its byte order mark"),
        ("a.txt", b"a\x00b\x00", "must be text in UTF-8, but got a NUL byte at offset 1"),
        ("a.jsonl.gz", b"plain", "must be a readable file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], "must be a readable file"),
        (
            "a.pdf",
            b"%PDF",
            "must end in .txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet, .arrow, but got '.pdf'",
        ),
    ],
)
def test_read_documents_refuses_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TextError, match=message):
        list(read_documents(path))


def test_read_documents_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="No such file"):
        list(read_documents(tmp_path / "none.txt"))


@settings(deadline=None)
@given(
    lines=st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1, max_size=20),
    slice_bytes=st.integers(1, 80),
    ends_with_newline=st.booleans(),
)
def test_cut_lines_slices_hold_each_document_once(
    lines: list[str], slice_bytes: int, ends_with_newline: bool
) -> None:
    content = "\n".join(json.dumps({"text": line}, ensure_ascii=False) for line in lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text(content + "\n" * ends_with_newline, encoding="utf-8", newline="")
        size = path.stat().st_size
        ranges = cut_lines(path, size, slice_bytes)
        assert [stop for _, stop in ranges[:-1]] == [start for start, _ in ranges[1:]]
        assert (ranges[0][0], ranges[-1][1]) == (0, size)
        assert len(ranges) <= -(-size // slice_bytes)
        found, line = [], 1
        for start, stop in ranges:
            found += read_slice(Slice(path, path.name, "a", start, stop, line), Fields())
            line += count_newlines(path, start, stop)
        assert found == list(read_documents(path))
        assert [document.text for document in found] == lines


@pytest.mark.parametrize(
    ("slice_bytes", "ranges"),
    [(5, [(0, 8), (8, 12)]), (4, [(0, 4), (4, 8), (8, 12)]), (1, [(0, 4), (4, 8), (8, 12)]), (99, [(0, 12)])],
)
def test_cut_lines_cuts_at_line_ends(tmp_path: Path, slice_bytes: int, ranges: list[tuple[int, int]]) -> None:
    (tmp_path / "a.jsonl").write_text("aaa\nbbb\nccc\n")
    assert cut_lines(tmp_path / "a.jsonl", 12, slice_bytes) == ranges


def test_read_documents_reads_past_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"text": "a"}\n', encoding="utf-8")
    assert [document.text for document in read_documents(path)] == ["a"]


def test_read_documents_reads_joined_files_with_byte_order_marks_and_windows_line_ends(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\r\n{"text": "a"}\r\n\xef\xbb\xbf{"text": "b\xe2\x80\xa8c"}\r\n')
    assert [document.text for document in read_documents(path)] == ["a", "b\u2028c"]


def test_read_slice_counts_lines_for_an_error_where_the_first_is_not_known(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b"}, {"txt": "c"})
    start = cut_lines(path, path.stat().st_size, 14)[1][0]
    part = Slice(path, path.name, "a", start, path.stat().st_size, first_line=None)
    with pytest.raises(TextError, match=r"a\.jsonl:3"):
        list(read_slice(part, Fields()))


def test_stdlib_documents_are_many_and_always_the_same() -> None:
    documents = list(stdlib_documents())
    assert len(documents) > 4_000
    assert sum(len(document.text) for document in documents) > 1_500_000
    assert {document.source for document in documents} == {"topics", "docstrings"}
    assert documents[:500] == list(itertools.islice(stdlib_documents(), 500))
