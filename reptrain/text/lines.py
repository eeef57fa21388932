"""Readers of .txt, .jsonl, .jsonl.gz and .jsonl.zst. Only a newline byte ends a line."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from reptrain.reading import ReadError, decode, parse_object
from reptrain.text.base import (
    Document,
    Fields,
    Slice,
    arrow_path,
    dump_metadata,
    invalid,
    make_document,
    suffix_of,
)

_CHUNK_BYTES = 1 << 20


def read_text(part: Slice, fields: Fields) -> Document:
    """A whole .txt file as one document.

    Raises:
        TextError: If it is not UTF-8.
    """
    try:
        text = decode(part.path.read_bytes())
    except ReadError as error:
        raise invalid(part.origin, error) from error
    tags = dump_metadata(fields.tags_of(part.source), lambda: part.origin)
    return Document(part.name, part.source, text, tags)


def read_lines(part: Slice, fields: Fields) -> Iterator[Document]:
    """The documents of a slice of JSON lines. Blank lines are skipped.

    Raises:
        TextError: If a line holds no text, naming the line.
    """
    for index, line in enumerate(_lines(part)):
        document = _parse_line(part, index, line, fields)
        if document is not None:
            yield document


def cut_lines(path: Path, size: int, slice_bytes: int) -> list[tuple[int, int]]:
    """Byte ranges of about ``slice_bytes`` that end at line ends and cover the file.

    Depends on the file alone. For lines of 4 bytes and ``slice_bytes`` 5:

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
            yield from packed
    elif suffix == ".jsonl.zst":
        with arrow_path(part.path) as path, pa.input_stream(path, compression="zstd") as stream:
            yield from io.BufferedReader(stream, _CHUNK_BYTES)
    else:
        with part.path.open("rb", _CHUNK_BYTES) as file:
            file.seek(part.start)
            yield from _until(file, part.stop - part.start)


def _until(lines: Iterable[bytes], num_bytes: int) -> Iterator[bytes]:
    for line in lines:
        if num_bytes <= 0:
            return
        num_bytes -= len(line)
        yield line


def _parse_line(part: Slice, index: int, line: bytes, fields: Fields) -> Document | None:
    def place() -> str:
        return f"{part.origin}:{_line_number(part, index)}"

    try:
        # Concatenated files have byte order marks in the middle.
        text = decode(line.rstrip(b"\r\n"))
        if not text or text.isspace():
            return None
        record = parse_object(text)
    except ReadError as error:
        raise invalid(place(), error) from error
    return make_document(part, fields, place, lambda: _name(part, index), record)


def _name(part: Slice, index: int) -> int | str:
    # Counting the lines before each document would read the file again each time.
    return "?" if part.first_line is None else part.first_line + index


def _line_number(part: Slice, index: int) -> int:
    first = part.first_line
    if first is None:
        first = 1 + count_newlines(part.path, 0, part.start)
    return first + index
