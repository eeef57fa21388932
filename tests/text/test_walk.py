"""Folders and globs with links, odd names, and entries that are no files."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reptrain.errors import StoreError, TextError
from reptrain.store import open_store
from reptrain.text import read_documents
from reptrain.text.sources import expand_sources
from reptrain.tokenization import tokenize

LINE = '{"text": "a"}\n'
NOBODY = 65534


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one file, beside others that are not in it."""
    for name in ("data/a.jsonl", "else/b.jsonl", "else/deep/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(LINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def labels(source: str | Path) -> list[str]:
    return [file.label for file in expand_sources([source])]


def test_links_to_folders_and_files_are_followed(data: Path) -> None:
    (data / "shard").symlink_to("../else")
    (data / "d.jsonl").symlink_to("../else/b.jsonl")
    linked = ["data/a.jsonl", "data/d.jsonl", "data/shard/deep/c.jsonl"]
    assert labels(data) == labels("data/**/*.jsonl") == labels("data/**") == linked
    assert labels("data/*/*.jsonl") == ["data/shard/b.jsonl"]
    (data / "d.jsonl").unlink()
    assert labels("data") == ["data/a.jsonl", "data/shard/b.jsonl", "data/shard/deep/c.jsonl"]


def test_loops_of_links_are_cut_and_files_taken_once_by_their_own_names(data: Path) -> None:
    (data / "z").mkdir()
    (data / "z" / "e.jsonl").write_text(LINE)
    links = {"loop": ".", "up": "..", "copy": "z", "z/back": "../../data", "0.jsonl": "a.jsonl"}
    for name, target in links.items():
        (data / name).symlink_to(target)
    expected = ["data/a.jsonl", "data/up/else/b.jsonl", "data/up/else/deep/c.jsonl", "data/z/e.jsonl"]
    assert labels(data) == labels("data/**/*.jsonl") == labels("data/**/*") == expected
    for one in range(12):
        (data / f"n{one}").mkdir()
        for other in range(12):
            (data / f"n{one}" / f"to{other}").symlink_to(f"../n{other}")
    assert labels(data) == expected


@pytest.mark.parametrize("kind", ["pipe", "socket", "dangling", "circle", "folder"])
def test_entries_other_than_files_are_refused_by_name(data: Path, kind: str) -> None:
    path = data / "x.jsonl"
    words = {"pipe": "a named pipe", "socket": "a socket", "circle": "Too many levels"}
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            server.bind("data/x.jsonl")
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("x.jsonl" if kind == "circle" else "gone")
        if kind == "folder":
            # An empty folder holds nothing that could be left out.
            assert labels(data) == labels("data/*") == ["data/a.jsonl"]
            return
        for source in (path, data, "data/*", "data/**/*.jsonl"):
            with pytest.raises(TextError, match=rf"x\.jsonl: .*{words.get(kind, 'No such file')}"):
                labels(source)


@contextmanager
def without_root() -> Iterator[None]:
    """Give up root's right to read every folder."""
    user = os.geteuid()
    os.seteuid(user or NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_cannot_be_read_is_refused_by_name() -> None:
    # Only root may enter pytest's own folders.
    with TemporaryDirectory() as folder:
        data = Path(folder)
        data.chmod(0o755)
        (data / "a.jsonl").write_text(LINE)
        (data / "closed").mkdir(mode=0)
        with without_root(), pytest.raises(TextError, match=r"closed: .*Permission denied"):
            labels(data)


def test_signs_of_patterns_in_names_are_taken_as_they_are(data: Path) -> None:
    for name in ("my [v2]/one?", "my v/one"):
        (data / name).mkdir(parents=True)
        (data / name / "x*.jsonl").write_text(LINE)
    assert labels("data/my [v2]/one?/*.jsonl") == ["one?/x*.jsonl"]
    assert labels("data/my [v2]/**") == labels("data/my [v2]") == ["my [v2]/one?/x*.jsonl"]
    assert labels("data/m*/one?/*.jsonl") == ["data/my [v2]/one?/x*.jsonl"]
    assert labels("data/my [v2]/one?/x*.jsonl") == ["x*.jsonl"]
    assert labels("data/my [[]v2]/*/*.jsonl") == ["data/my [v2]/one?/x*.jsonl"]
    with pytest.raises(TextError, match=r"must match a file, but got none.*\[\[\] a bracket"):
        labels("data/my [v3]/*.jsonl")


@pytest.mark.parametrize("suffix", [".jsonl", ".txt", ".jsonl.zst", ".parquet", ".arrow"])
def test_names_that_are_not_utf8_are_escaped(tmp_path: Path, model: Path, suffix: str) -> None:
    folder = tmp_path / os.fsdecode(b"in\xff")
    folder.mkdir()
    path = folder / os.fsdecode(b"b\xfe" + suffix.encode())
    texts = [f"token {number}" for number in range(30)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    table = pa.table({"text": texts})
    if suffix == ".parquet":
        with path.open("wb") as file:
            pq.write_table(table, file)
    elif suffix == ".arrow":
        with path.open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    elif suffix == ".jsonl.zst":
        path.write_bytes(pa.compress(lines, "zstd", asbytes=True))
    else:
        path.write_bytes(lines)
    (tmp_path / "more.jsonl").write_bytes(lines.replace(b"token", b"epoch"))
    for number, source in enumerate((path, folder)):
        out = tmp_path / f"s{number}"
        manifest = tokenize([source, tmp_path / "more.jsonl"], out, tokenizer=model, held_out_fraction=0.3)
        assert manifest.counts.read == (31 if suffix == ".txt" else 60)
        assert manifest.inputs[0].name == ("in\\xff/" if number else "") + f"b\\xfe{suffix}"
        train = open_store(out).split("train")
        ids = [train.document_id(index) for index in range(train.num_documents)]
        if suffix != ".txt":
            assert any(name.startswith("b\\xfe") for name in ids)
    with pytest.raises(StoreError, match=r"store .*s\\xff: must have a path in UTF-8"):
        tokenize([path], tmp_path / os.fsdecode(b"s\xff"), tokenizer=model)


def test_messages_escape_names(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a\nb\xff.jsonl")
    path.write_bytes(b"no\n")
    with pytest.raises(TextError) as caught:
        list(read_documents(path))
    assert "a\\x0ab\\xff.jsonl:1: must be a JSON object" in str(caught.value)
    path.write_bytes(b"")
    with pytest.raises(TextError, match=r"a\\x0ab\\xff\.jsonl: must hold text, but got 0 bytes"):
        expand_sources([tmp_path])


def test_two_files_of_one_escaped_name_are_refused(tmp_path: Path) -> None:
    for name in (b"b\xff.jsonl", b"b\\xff.jsonl"):
        (tmp_path / os.fsdecode(name)).write_text(LINE)
    with pytest.raises(TextError, match="two files that are called"):
        expand_sources([tmp_path])


def test_a_name_with_a_leading_dash_a_space_or_a_newline_is_read(tmp_path: Path) -> None:
    names = ["-x.jsonl", " y .jsonl", "new\nline.jsonl", "ünïcode.jsonl"]
    for name in names:
        (tmp_path / name).write_text(LINE)
    assert [file.name for file in expand_sources([tmp_path])] == [
        " y .jsonl", "-x.jsonl", "new\\x0aline.jsonl", "ünïcode.jsonl",
    ]  # fmt: skip
    with pytest.raises(TextError, match=r"must be a readable file, but got embedded null byte"):
        expand_sources(["a\0.jsonl"])
