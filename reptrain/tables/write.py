"""Readings of runs as Arrow tables, and the files they are written to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet

from reptrain.tables.addresses import Address, write_bytes
from reptrain.tables.columns import EVALUATION_COLUMNS, Column
from reptrain.tables.read_run import Row, RunReading
from reptrain.tables.typed_rows import run_rows, typed_rows

_ARROW = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}


def runs_table(
    readings: Sequence[RunReading], settings: Sequence[str] = (), results: Sequence[str] = ()
) -> pa.Table:
    """A row for each run; see `run_rows`."""
    return _table(*run_rows(readings, settings, results))


def evaluations_table(readings: Iterable[RunReading], others: Iterable[Row] = ()) -> pa.Table:
    """A row for each evaluation.

    Args:
        readings: The runs, with their own evaluations.
        others: Rows of other evaluations.
    """
    own = [row for reading in readings for row in reading.evaluations]
    return _table(typed_rows([*own, *others], EVALUATION_COLUMNS), EVALUATION_COLUMNS)


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> pa.Table:
    fields = [
        pa.field(column.name, _ARROW[column.type], metadata={"description": column.description})
        for column in columns
    ]
    arrays = [pa.array([row[column.name] for row in rows], _ARROW[column.type]) for column in columns]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def write_parquet(table: pa.Table, address: Address) -> None:
    """Write a table to a path, atomically, or to a URL."""
    buffer = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, buffer)
    write_bytes(buffer.getvalue().to_pybytes(), address)
