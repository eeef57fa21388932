"""Readings of runs as rows with the types of the columns."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reptrain.tables.columns import SETTING_PREFIX, Column, ColumnType, runs_columns
from reptrain.tables.read_run import Row, RunReading


def run_rows(
    readings: Sequence[RunReading], settings: Sequence[str] = (), results: Sequence[str] = ()
) -> tuple[list[Row], tuple[Column, ...]]:
    """A row for each run, and the columns.

    Args:
        readings: The runs.
        settings: Dotted keys of the varied settings. Their values are taken from the row's ``set.KEY`` if it
            has one, else from the run's configuration.
        results: Columns of the rows with the scores of commands on the runs.
    """
    values = {key: [_setting(reading, key) for reading in readings] for key in settings}
    types = {key: _common_type(column) for key, column in values.items()}
    rows = [dict(reading.row) for reading in readings]
    for key, column in values.items():
        for row, value in zip(rows, column, strict=True):
            row[f"{SETTING_PREFIX}{key}"] = _as_text(value) if types[key] == "string" else value
    columns = runs_columns(types, results)
    return typed_rows(rows, columns), columns


def typed_rows(rows: Iterable[Row], columns: Sequence[Column]) -> list[Row]:
    """The values of the columns in their types; null for a missing value, or one of another type."""
    return [{column.name: _cast(row.get(column.name), column.type) for column in columns} for row in rows]


def json_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows for JSON; floats that are not finite become the strings NaN, Infinity and -Infinity."""
    return [{name: _json_value(value) for name, value in row.items()} for row in rows]


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as CSV with a heading; null is an empty cell."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


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


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
