"""Readings of runs as Arrow tables, and the files they are written to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from reptrain.tables.addresses import Address, write_bytes
from reptrain.tables.columns import EVALUATION_COLUMNS, SETTING_PREFIX, Column, ColumnType, runs_columns
from reptrain.tables.read_run import Row, RunReading

_ARROW = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}


def runs_table(readings: Sequence[RunReading], settings: Sequence[str] = ()) -> pa.Table:
    """A row for each run.

    Args:
        readings: The runs.
        settings: Dotted keys of the varied settings. Their values are taken from the row's ``set.KEY`` if it
            has one, else from the run's configuration.
    """
    values = {key: [_setting(reading, key) for reading in readings] for key in settings}
    types = {key: _common_type(column) for key, column in values.items()}
    rows = [dict(reading.row) for reading in readings]
    for key, column in values.items():
        for row, value in zip(rows, column, strict=True):
            row[f"{SETTING_PREFIX}{key}"] = _as_text(value) if types[key] == "string" else value
    return _table(rows, runs_columns(types))


def evaluations_table(readings: Iterable[RunReading], others: Iterable[Row] = ()) -> pa.Table:
    """A row for each evaluation.

    Args:
        readings: The runs, with their own evaluations.
        others: Rows of other evaluations.
    """
    own = [row for reading in readings for row in reading.evaluations]
    return _table([*own, *others], EVALUATION_COLUMNS)


def _setting(reading: RunReading, key: str) -> Any:
    column = f"{SETTING_PREFIX}{key}"
    if column in reading.row:
        return reading.row[column]
    if key in reading.settings:
        return reading.settings[key]
    # A section: its settings as one value.
    return {k: v for k, v in reading.settings.items() if k.startswith(f"{key}.")} or None


def _common_type(values: Iterable[Any]) -> ColumnType:
    """The narrowest type of a column that holds all values."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "bool"
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values if value is not None):
        return "int64"
    return "float64" if kinds and kinds <= {int, float} else "string"


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True)


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> pa.Table:
    fields = [
        pa.field(column.name, _ARROW[column.type], metadata={"description": column.description})
        for column in columns
    ]
    arrays = [
        pa.array([_cast(row.get(column.name), column.type) for row in rows], _ARROW[column.type])
        for column in columns
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _cast(value: Any, kind: ColumnType) -> Any:
    """The value in the type of its column; null if a damaged file holds something else."""
    if kind == "string":
        return value if value is None or isinstance(value, str) else str(value)
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if kind == "float64":
        return float(value)
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else None


def write_parquet(table: pa.Table, address: Address) -> None:
    """Write a table to a path, atomically, or to a URL."""
    buffer = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, buffer)
    write_bytes(buffer.getvalue().to_pybytes(), address)


def json_rows(table: pa.Table) -> list[Row]:
    """The rows for JSON; floats that are not finite become the strings NaN, Infinity and -Infinity."""
    return [{name: _json_value(value) for name, value in row.items()} for row in table.to_pylist()]


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as CSV with a heading; null is an empty cell."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
