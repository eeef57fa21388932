"""Readers of documents from .txt, .jsonl and .jsonl.gz files. All of them stream."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from reptrain.errors import TextError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")
_BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 20


class Document(NamedTuple):
    """One text, with a name of its own and the name of the source that it came from."""

    id: str
    source: str
    text: str


class Fields(NamedTuple):
    """The keys of a JSON line that hold the text and the id."""

    text: str = "text"
    id: str = "id"


class Slice(NamedTuple):
    """Whole lines of a file: bytes [start, stop), ``first_line`` counted from 1.

    Where it is None, not known yet, documents without an id of their own are named ``file:?``.

    A file that cannot be cut (.txt, .jsonl.gz) is one slice.
    """

    path: Path
    name: str
    source: str
    start: int
    stop: int
    first_line: int | None = 1


def suffix_of(path: Path) -> str | None:
    """The supported suffix of a file's name, or None."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def source_name(path: Path) -> str:
    """The default name of a source: the file's or folder's name without a supported suffix."""
    return path.name[: -len(suffix_of(path) or "")] if suffix_of(path) else path.name


def file_bytes(path: Path) -> int:
    """The size of a readable text file of a supported kind.

    Raises:
        TextError: If the file is missing, empty or of another kind.
    """
    if suffix_of(path) is None:
        raise TextError(
            f"source {path}",
            got=repr(path.suffix),
            rule=f"must end in {', '.join(SUFFIXES)}",
            remedy="Convert the file, one JSON object with a text a line.",
        )
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    if size == 0:
        raise TextError(
            f"source {path}", got="0 bytes", rule="must hold text", remedy="Leave the file out or fill it."
        )
    return size


def read_documents(
    path: Path, *, source: str | None = None, text_field: str = "text", id_field: str = "id"
) -> Iterator[Document]:
    """The documents of one file, streaming: a .txt is one document, a .jsonl one a line.

    Args:
        path: A .txt, .jsonl or .jsonl.gz file in UTF-8.
        source: Name of the source; None takes the file's name without its suffix.
        text_field: Key of the text in a JSON line.
        id_field: Key of the id in a JSON line; a line without it is named ``file:line``.

    Raises:
        TextError: If the file is missing, empty, not UTF-8, or a line does not hold a text.
    """
    size = file_bytes(path)
    whole = Slice(path, path.name, source or source_name(path), 0, size)
    found = False
    for document in read_slice(whole, Fields(text_field, id_field)):
        found = True
        yield document
    if not found:
        raise TextError(
            f"source {path}", got="blank lines only", rule="must hold documents", remedy="Leave the file out."
        )


def read_slice(part: Slice, fields: Fields) -> Iterator[Document]:
    """The documents of a slice, in the file's order.

    Raises:
        TextError: If it cannot be read, naming the file and line.
    """
    try:
        if suffix_of(part.path) == ".txt":
            yield _read_text(part)
        else:
            for index, line in enumerate(_lines(part)):
                if line.strip():
                    yield _parse_line(part, index, line, fields)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(part.path, error) from error


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
    if suffix_of(part.path) == ".jsonl.gz":
        with gzip.open(part.path, "rb") as file:
            yield from _without_bom(file)
        return
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


def _read_text(part: Slice) -> Document:
    content = part.path.read_bytes().removeprefix(_BOM)
    try:
        return Document(part.name, part.source, content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _not_utf8(str(part.path), error) from error


def _parse_line(part: Slice, index: int, line: bytes, fields: Fields) -> Document:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _not_utf8(_place(part, index), error) from error
    except (ValueError, RecursionError) as error:
        raise TextError(
            f"source {_place(part, index)}",
            got=_shorten(line),
            rule="must be a JSON object",
            remedy="Write one object a line.",
        ) from error
    text = record.get(fields.text) if isinstance(record, dict) else None
    if not isinstance(text, str):
        keys = ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
        raise TextError(
            f"source {_place(part, index)}",
            got=f"{keys or 'no keys'}" if text is None else f"{fields.text} of type {type(text).__name__}",
            rule=f"must be a JSON object with a text under {fields.text!r}",
            remedy="Name the right key with text_field.",
        )
    given = record.get(fields.id)
    if not (_is_unicode(text) and _is_unicode(str(given))):
        raise TextError(
            f"source {_place(part, index)}",
            got="half of a surrogate pair",
            rule="must hold valid Unicode",
            remedy="Write the file anew as UTF-8.",
        )
    return Document(_name(part, index) if given is None else str(given), part.source, text)


def _is_unicode(text: str) -> bool:
    """Whether there is no half of a surrogate pair in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(part: Slice, index: int) -> str:
    # To count the lines before it for every document would read the file again and again.
    line = "?" if part.first_line is None else part.first_line + index
    return f"{part.name}:{line}"


def _line_number(part: Slice, index: int) -> int:
    first = part.first_line
    if first is None:
        first = 1 + count_newlines(part.path, 0, part.start)
    return first + index


def _place(part: Slice, index: int) -> str:
    return f"{part.path}:{_line_number(part, index)}"


def _shorten(line: bytes) -> str:
    text = line.decode("utf-8", errors="replace").strip()
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _not_utf8(place: str, error: UnicodeDecodeError) -> TextError:
    return TextError(
        f"source {place}",
        got=f"byte 0x{error.object[error.start]:02x} at offset {error.start}",
        rule="must be UTF-8",
        remedy="Convert it, for example with iconv -t UTF-8.",
    )


def _unreadable(path: Path, error: Exception) -> TextError:
    reason = getattr(error, "strerror", None) or error
    return TextError(f"source {path}", got=reason, rule="must be a readable file", remedy="Check the path.")
