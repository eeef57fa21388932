"""Readers of .txt, .jsonl, .jsonl.gz and .jsonl.zst. Lines end at a newline byte and nowhere else."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from reptrain.errors import TextError
from reptrain.files import parse_json
from reptrain.text.base import Document, Fields, Slice, dump_metadata, make_document, not_utf8, suffix_of

_BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 20


def read_text(part: Slice, fields: Fields) -> Document:
    """A whole .txt file as one document.

    Raises:
        TextError: If it is not UTF-8.
    """
    content = part.path.read_bytes().removeprefix(_BOM)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(part.origin, error) from error
    tags = dump_metadata(fields.tags_of(part.source), lambda: part.origin)
    return Document(part.name, part.source, text, tags)


def read_lines(part: Slice, fields: Fields) -> Iterator[Document]:
    """The documents of a slice of JSON lines; blank lines hold none.

    Raises:
        TextError: If a line holds no text, naming it.
    """
    for index, line in enumerate(_lines(part)):
        if line.strip():
            yield _parse_line(part, index, line, fields)


def cut_lines(path: Path, size: int, slice_bytes: int) -> list[tuple[int, int]]:
    """Byte ranges of about ``slice_bytes`` that end at line ends and cover the file.

    A function of the file alone. For lines of 4 bytes and ``slice_bytes`` 5:

        aaa\\nbbb\\nccc\\n  ->  [(0, 8), (8, 12)]
    """
    ends: list[int] = []
    with path.open("rb") as file:
        for target in range(slice_bytes, size, slice_bytes):
            if ends and target <= ends[-1]:
                continue
            file.seek(target - 1)
            file.readline()
            ends.append(min(file.tell(), size))
    if not ends or ends[-1] < size:
        ends.append(size)
    return list(zip([0, *ends[:-1]], ends, strict=True))


def count_newlines(path: Path, start: int, stop: int) -> int:
    """The number of newline bytes in [start, stop) of a file."""
    total, left = 0, stop - start
    with path.open("rb") as file:
        file.seek(start)
        while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
            total += chunk.count(b"\n")
            left -= len(chunk)
    return total


def _lines(part: Slice) -> Iterator[bytes]:
    suffix = suffix_of(part.path)
    if suffix == ".jsonl.gz":
        with gzip.open(part.path, "rb") as packed:
            yield from _without_bom(packed)
    elif suffix == ".jsonl.zst":
        with pa.input_stream(str(part.path), compression="zstd") as stream:
            yield from _without_bom(io.BufferedReader(stream, _CHUNK_BYTES))
    else:
        with part.path.open("rb") as file:
            file.seek(part.start)
            lines = _until(file, part.stop - part.start)
            yield from _without_bom(lines) if part.start == 0 else lines


def _until(lines: Iterable[bytes], num_bytes: int) -> Iterator[bytes]:
    for line in lines:
        if num_bytes <= 0:
            return
        num_bytes -= len(line)
        yield line


def _without_bom(lines: Iterable[bytes]) -> Iterator[bytes]:
    for index, line in enumerate(lines):
        yield line.removeprefix(_BOM) if index == 0 else line


def _parse_line(part: Slice, index: int, line: bytes, fields: Fields) -> Document:
    def place() -> str:
        return f"{part.origin}:{_line_number(part, index)}"

    try:
        record = parse_json(line)
    except UnicodeDecodeError as error:
        raise not_utf8(place(), error) from error
    except ValueError as error:
        raise TextError(
            f"source {place()}",
            got=_shorten(line),
            rule="must be a JSON object",
            remedy="Write one object a line.",
        ) from error
    if not isinstance(record, dict):
        raise TextError(
            f"source {place()}",
            got=type(record).__name__,
            rule=f"must be a JSON object with a text under {fields.text!r}",
            remedy="Write one object a line.",
        )
    return make_document(part, fields, place, lambda: _name(part, index), record)


def _name(part: Slice, index: int) -> int | str:
    # To count the lines before it for every document would read the file again and again.
    return "?" if part.first_line is None else part.first_line + index


def _line_number(part: Slice, index: int) -> int:
    first = part.first_line
    if first is None:
        first = 1 + count_newlines(part.path, 0, part.start)
    return first + index


def _shorten(line: bytes) -> str:
    text = line.decode("utf-8", errors="replace").strip()
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
