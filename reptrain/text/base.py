"""What all readers share: documents, slices of files, and errors that name the file and line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from reptrain.errors import TextError
from reptrain.reading import ReadError, escape_name, is_unicode

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".arrow")
COLUMNAR = (".parquet", ".arrow")


class Document(NamedTuple):
    """One text with its id and the name of its source.

    ``metadata`` is a compact JSON object of the fields and tags kept with it, or None.
    """

    id: str
    source: str
    text: str
    metadata: str | None = None


class Tag(NamedTuple):
    """A key and value for every document of a source; source None means all sources."""

    source: str | None
    key: str
    value: str


class Fields(NamedTuple):
    """The keys of a JSON line, or columns of a table, for text, id and metadata; and the tags to add.

    A dotted name is a key of a nested object: ``meta.url``.
    """

    text: str = "text"
    id: str = "id"
    metadata: tuple[str, ...] = ()
    tags: tuple[Tag, ...] = ()

    def tags_of(self, source: str) -> dict[str, str]:
        """The tags of one source. A tag for that source overrides one for all."""
        common = {tag.key: tag.value for tag in self.tags if tag.source is None}
        return common | {tag.key: tag.value for tag in self.tags if tag.source == source}


class Slice(NamedTuple):
    """Whole records of a file: bytes [start, stop), with ``first_line`` counted from 1.

    A ``first_line`` of None is not known yet: documents without an id are then named ``file:?``.

    A file that cannot be split (.txt, .gz, .zst, an Arrow stream) is one slice. In a file of blocks (row
    groups of Parquet, batches of Arrow), ``blocks`` is the range [first, last) of the slice, or None for all,
    and the byte range is its proportional part of the file.
    """

    path: Path
    name: str
    source: str
    start: int
    stop: int
    first_line: int | None = 1
    blocks: tuple[int, int] | None = None
    url: str | None = None

    @property
    def origin(self) -> str:
        """The file's name in messages: its URL if it was fetched, else its path."""
        return self.url or escape_name(str(self.path))


def suffix_of(path: Path | str) -> str | None:
    """The supported suffix of a file's name, or None."""
    name = str(path).lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def source_name(path: Path) -> str:
    """The default name of a source: the file's or folder's name without a supported suffix."""
    return escape_name(path.name[: -len(suffix_of(path) or "")] if suffix_of(path) else path.name)


@contextmanager
def arrow_path(path: Path) -> Iterator[str]:
    """A path that pyarrow can open. It cannot open names that are not UTF-8."""
    if is_unicode(str(path)):
        yield str(path)
        return
    with path.open("rb") as file:
        yield f"/dev/fd/{file.fileno()}"


def make_document(
    part: Slice,
    fields: Fields,
    place: Callable[[], str],
    line: Callable[[], int | str],
    record: Mapping[str, Any],
) -> Document:
    """The document of one record.

    Args:
        part: The slice of the record.
        fields: Keys of text, id and metadata.
        place: Returns file and line, for errors.
        line: Returns the record's number, for the id of a record without one.
        record: The values by name.

    Raises:
        TextError: If it holds no text.
    """
    text = look_up(record, fields.text)
    if not isinstance(text, str):
        raise _no_text(place(), fields.text, record, text)
    given = look_up(record, fields.id)
    if given is not None and isinstance(given, (bool, bytes, list, Mapping)):
        raise TextError(
            f"source {place()}",
            got=f"{type(given).__name__} under {fields.id!r}",
            rule="must have a text or a number as its id",
            remedy="Choose another field with --id-field.",
        )
    if not (is_unicode(text) and (given is None or is_unicode(str(given)))):
        raise TextError(
            f"source {place()}",
            got="half of a surrogate pair",
            rule="must hold valid Unicode",
            remedy="Write the file again as UTF-8.",
        )
    name = f"{part.name}:{line()}" if given is None or given != given else str(given)
    if not (fields.metadata or fields.tags):
        return Document(name, part.source, text)
    kept = {key: value for key in fields.metadata if (value := look_up(record, key)) is not None}
    return Document(name, part.source, text, dump_metadata(kept | fields.tags_of(part.source), place))


def look_up(record: Mapping[str, Any], name: str) -> Any:
    """A value by its name or dotted name, or None."""
    if name in record or "." not in name:
        return record.get(name)
    head, _, rest = name.partition(".")
    inner = record.get(head)
    return look_up(inner, rest) if isinstance(inner, Mapping) else None


def dump_metadata(values: Mapping[str, Any], place: Callable[[], str]) -> str | None:
    """Metadata as compact JSON, or None if empty. Dates become ISO text, NaN and infinity become null.

    Raises:
        TextError: If JSON cannot express a value.
    """
    if not values:
        return None
    try:
        return json.dumps(_finite(values), ensure_ascii=False, separators=(",", ":"), default=_plain)
    except (TypeError, ValueError) as error:
        raise TextError(
            f"source {place()}",
            got=str(error),
            rule="must hold metadata that JSON can express",
            remedy="Leave that metadata field out, or write it as text.",
        ) from error


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> str:
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    if isinstance(value, bytes):
        raise TypeError("a value of type bytes")
    return str(value)


def _no_text(place: str, field: str, record: Mapping[str, Any], text: Any) -> TextError:
    got: object = f"{field} of type {type(text).__name__}"
    if text is None and field in record:
        got = f"null under {field!r}"
    elif text is None:
        got = ", ".join(sorted(record)) or "no keys"
    elif text != text:
        got = f"NaN under {field!r}"
    return TextError(
        f"source {place}",
        got=got,
        rule=f"must be a JSON object with a text under {field!r}",
        remedy="Set the key with --text-field, or fix the file.",
    )


def unreadable(origin: str, error: Exception) -> TextError:
    """The error for a file that cannot be read."""
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0] if str(error) else error
    return TextError(f"source {origin}", got=reason, rule="must be a readable file", remedy="Check the file.")


def invalid(place: str, cause: ReadError) -> TextError:
    """The error for bytes or a line that cannot be parsed."""
    return TextError(f"source {place}", got=cause.got, rule=cause.rule, remedy=cause.remedy)


def not_utf8(place: str, error: UnicodeDecodeError) -> TextError:
    """The error for bytes that are not UTF-8."""
    return TextError(
        f"source {place}",
        got=f"byte 0x{error.object[error.start]:02x} at offset {error.start}",
        rule="must be UTF-8",
        remedy="Convert it, for example with iconv -t UTF-8.",
    )
