"""Readers of tables: Parquet by row groups, Arrow IPC files by batches, Arrow streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from reptrain.errors import TextError
from reptrain.text.base import (
    Document,
    Fields,
    Slice,
    arrow_path,
    make_document,
    not_utf8,
    suffix_of,
    unreadable,
)

_BATCH_BYTES = 1 << 24
_MOST_ROWS = 4096
_ARROW_FILE = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class Block(NamedTuple):
    """A row group or batch: its rows, and its weight (bytes or rows) among the blocks of the file."""

    rows: int
    weight: int


def check_table(path: Path, origin: str, fields: Fields) -> list[Block] | None:
    """Check that a table has the needed columns. Returns its blocks; None for a stream, which has none.

    Args:
        path: A .parquet or .arrow file.
        origin: Its name in messages.
        fields: The needed columns.

    Raises:
        TextError: If it cannot be read, is empty, or a column is missing or of another type.
    """
    try:
        schema, blocks = _describe(path)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise unreadable(origin, error) from error
    _columns(schema, origin, fields)
    if blocks is not None and sum(block.rows for block in blocks) == 0:
        raise TextError(
            f"source {origin}", got="0 rows", rule="must hold documents", remedy="Leave the file out."
        )
    return blocks


def cut_blocks(part: Slice, blocks: Sequence[Block], slice_bytes: int) -> list[Slice]:
    """Slices of adjacent blocks, each of at least ``slice_bytes`` of the file, except for the last.

    Three blocks of equal weight in a file of 90 bytes, and ``slice_bytes`` 40:

        blocks (0, 2) as bytes (0, 60), blocks (2, 3) as bytes (60, 90)
    """
    total = max(1, sum(block.weight for block in blocks))
    slices: list[Slice] = []
    start, first, row, weight, rows = 0, 0, 1, 0, 0
    for index, block in enumerate(blocks, start=1):
        weight, rows = weight + block.weight, rows + block.rows
        stop = part.stop if index == len(blocks) else part.stop * weight // total
        if stop - start >= slice_bytes or index == len(blocks):
            slices.append(part._replace(start=start, stop=stop, first_line=row, blocks=(first, index)))
            start, first, row = stop, index, 1 + rows
    return slices


def read_table(part: Slice, fields: Fields) -> Iterator[Document]:
    """The documents of a slice of a table. Reads a few megabytes of the needed columns at a time.

    Raises:
        TextError: If it cannot be read, or a text is null.
    """
    row = part.first_line or 1
    for batch in _batches(part, fields):
        for record in _records(batch, part, row):
            yield _document(part, fields, row, record)
            row += 1


def _document(part: Slice, fields: Fields, row: int, record: dict[str, Any]) -> Document:
    return make_document(part, fields, lambda: f"{part.origin}: row {row}", lambda: row, record)


def _records(batch: pa.RecordBatch, part: Slice, row: int) -> list[dict[str, Any]]:
    try:
        records: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError as error:
        raise not_utf8(f"{part.origin}: rows {row} to {row + batch.num_rows - 1}", error) from error
    return records


def _describe(path: Path) -> tuple[pa.Schema, list[Block] | None]:
    if suffix_of(path) == ".parquet":
        import pyarrow.parquet as pq

        with arrow_path(path) as place, pq.ParquetFile(place) as file:
            groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
            return file.schema_arrow, [Block(group.num_rows, group.total_byte_size) for group in groups]
    with arrow_path(path) as place, pa.memory_map(place) as source:
        if source.read(len(_ARROW_FILE)) == _ARROW_FILE:
            reader = pa.ipc.open_file(source)
            rows = [reader.get_batch(index).num_rows for index in range(reader.num_record_batches)]
            return reader.schema, [Block(count, count) for count in rows]
        source.seek(max(0, source.size() - len(_END_OF_STREAM)))
        if source.read() != _END_OF_STREAM:
            raise pa.ArrowInvalid("an Arrow stream without its end mark: cut short, or of another format")
        source.seek(0)
        return pa.ipc.open_stream(source).schema, None


def _columns(schema: pa.Schema, origin: str, fields: Fields) -> list[str]:
    """The columns to read, as dotted names. The id column may be missing.

    Raises:
        TextError: If a column is missing or duplicated, or the text has another type.
    """
    text = _column(schema, fields.text)
    if text is None or not _is_text(text):
        raise TextError(
            f"source {origin}",
            got=f"the columns {_listed(schema)}" if text is None else f"a column of type {text}",
            rule=f"must have a column {fields.text!r} of type string",
            remedy="Set the column with --text-field.",
        )
    wanted = [fields.text, *fields.metadata]
    for name in fields.metadata:
        if _column(schema, name) is None:
            raise TextError(
                f"source {origin}",
                got=f"the columns {_listed(schema)}",
                rule=f"must have the column {name!r} of the metadata",
                remedy="Set the column with --metadata-field.",
            )
    if _column(schema, fields.id) is not None:
        wanted.append(fields.id)
    for name in wanted:
        head = name if name in schema.names else name.partition(".")[0]
        if schema.names.count(head) > 1:
            raise TextError(
                f"source {origin}",
                got=f"{schema.names.count(head)} columns {head!r}",
                rule="must have each column once",
                remedy="Rename or drop the others.",
            )
    return list(dict.fromkeys(wanted))


def _column(schema: pa.Schema, name: str) -> pa.DataType | None:
    """The type of a column by its name or dotted name, or None."""
    if name in schema.names:
        return schema.field(schema.names.index(name)).type
    head, dot, rest = name.partition(".")
    if not dot or head not in schema.names:
        return None
    kind = schema.field(schema.names.index(head)).type
    return _column(pa.schema(list(kind)), rest) if pa.types.is_struct(kind) else None


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    # A column of nulls is accepted, so that the error can name the row.
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _listed(schema: pa.Schema) -> str:
    return ", ".join(schema.names[:20]) + (", ..." if len(schema.names) > 20 else "") or "none"


def _batches(part: Slice, fields: Fields) -> Iterator[pa.RecordBatch]:
    reader = _parquet_batches if suffix_of(part.path) == ".parquet" else _arrow_batches
    yield from reader(part, fields)


def _parquet_batches(part: Slice, fields: Fields) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    # Buffered reads load a page at a time; pre-buffering would load whole row groups.
    with (
        arrow_path(part.path) as path,
        pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file,
    ):
        columns = _columns(file.schema_arrow, part.origin, fields)
        for group in range(*(part.blocks or (0, file.num_row_groups))):
            about = file.metadata.row_group(group)
            rows = _rows(about.total_byte_size, about.num_rows)
            yield from file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)


def _arrow_batches(part: Slice, fields: Fields) -> Iterator[pa.RecordBatch]:
    with arrow_path(part.path) as path, pa.memory_map(path) as source:
        is_file = source.read(len(_ARROW_FILE)) == _ARROW_FILE
        source.seek(0)
        schema = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source).schema
        heads = {
            name if name in schema.names else name.partition(".")[0]
            for name in _columns(schema, part.origin, fields)
        }
        options = pa.ipc.IpcReadOptions(included_fields=[schema.names.index(head) for head in sorted(heads)])
        source.seek(0)
        if is_file:
            file = pa.ipc.open_file(source, options=options)
            batches = map(file.get_batch, range(*(part.blocks or (0, file.num_record_batches))))
        else:
            batches = iter(pa.ipc.open_stream(source, options=options))
        for batch in batches:
            rows = _rows(batch.nbytes, batch.num_rows)
            yield from (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))


def _rows(num_bytes: int, rows: int) -> int:
    """Number of rows with about `_BATCH_BYTES` in total."""
    return max(1, min(_MOST_ROWS, _BATCH_BYTES * rows // max(1, num_bytes)))
