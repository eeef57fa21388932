"""Readers of documents from files of every supported kind. All but .txt are streamed."""

from __future__ import annotations

import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from reptrain.errors import TextError
from reptrain.reading import escape_name
from reptrain.text.base import (
    COLUMNAR,
    SUFFIXES,
    Document,
    Fields,
    Slice,
    Tag,
    source_name,
    suffix_of,
    unreadable,
)
from reptrain.text.columns import check_table, cut_blocks, read_table
from reptrain.text.lines import count_newlines, cut_lines, read_lines, read_text

__all__ = [
    "SUFFIXES",
    "Document",
    "Fields",
    "Slice",
    "Tag",
    "count_newlines",
    "cut_lines",
    "cut_slice",
    "file_bytes",
    "no_bytes",
    "read_documents",
    "read_slice",
    "source_name",
    "suffix_of",
    "unknown_kind",
]


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def file_bytes(path: Path) -> int:
    """The size of a readable text file of a supported kind.

    Raises:
        TextError: If the file is missing, empty or of another kind.
    """
    origin = escape_name(str(path))
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        raise unreadable(origin, error) from error
    if not stat.S_ISREG(state.st_mode):
        raise TextError(
            f"source {origin}",
            got=next((kind for is_kind, kind in _KINDS if is_kind(state.st_mode)), "another kind of entry"),
            rule="must be a file",
            remedy="Write its content to a file.",
        )
    if suffix_of(path) is None:
        raise unknown_kind(origin)
    if state.st_size == 0:
        raise no_bytes(origin)
    return state.st_size


def read_documents(
    path: Path, *, source: str | None = None, text_field: str = "text", id_field: str = "id"
) -> Iterator[Document]:
    """The documents of one file, streamed: a .txt file is one document, other files have one per line or row.

    Args:
        path: A file in UTF-8, of a kind in SUFFIXES.
        source: Name of the source; None uses the file's name without its suffix.
        text_field: Key or column of the text.
        id_field: Key or column of the id; a record without it is named ``file:line``.

    Raises:
        TextError: If the file is missing, empty or not UTF-8, or a line holds no text.
    """
    size = file_bytes(path)
    whole = Slice(path, escape_name(path.name), source or source_name(path), 0, size)
    is_empty = True
    for document in read_slice(whole, Fields(text_field, id_field)):
        is_empty = False
        yield document
    if is_empty:
        raise TextError(
            f"source {whole.origin}",
            got="blank lines only",
            rule="must hold documents",
            remedy="Leave the file out.",
        )


def read_slice(part: Slice, fields: Fields) -> Iterator[Document]:
    """The documents of a slice, in the file's order.

    Raises:
        TextError: If it cannot be read, naming the file and line.
    """
    suffix = suffix_of(part.path)
    try:
        if suffix == ".txt":
            yield read_text(part, fields)
        elif suffix in COLUMNAR:
            yield from read_table(part, fields)
        else:
            yield from read_lines(part, fields)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise unreadable(part.origin, error) from error


def cut_slice(whole: Slice, fields: Fields, slice_bytes: int) -> list[Slice]:
    """Split a file into slices of about ``slice_bytes`` or more. Depends on its content alone.

    Args:
        whole: The file.
        fields: Columns that a table must have.
        slice_bytes: Bytes of the file, compressed or not.

    Raises:
        TextError: If a table cannot be read, is empty or lacks a column.
    """
    suffix = suffix_of(whole.path)
    if suffix in COLUMNAR:
        blocks = check_table(whole.path, whole.origin, fields)
        return [whole] if blocks is None else cut_blocks(whole, blocks, slice_bytes)
    if suffix == ".jsonl":
        return [
            whole._replace(start=start, stop=stop, first_line=None if start else 1)
            for start, stop in cut_lines(whole.path, whole.stop, slice_bytes)
        ]
    return [whole]


def unknown_kind(origin: str) -> TextError:
    """The error for a file without a reader."""
    suffix = Path(origin).suffix
    return TextError(
        f"source {origin}",
        got=repr(suffix) if suffix else "no suffix",
        rule=f"must end in {', '.join(SUFFIXES)}",
        remedy="Convert the file, for example to one JSON object per line.",
    )


def no_bytes(origin: str) -> TextError:
    """The error for an empty file."""
    return TextError(
        f"source {origin}", got="0 bytes", rule="must hold text", remedy="Leave the file out or fill it."
    )
