"""Tables of runs: read them, select rows, and take columns as NumPy arrays.

A table is a `pyarrow.Table`. No function here knows a column by name; questions name the columns they need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from reptrain.errors import AnalysisError
from reptrain.tables.addresses import as_path, read_bytes
from reptrain.tables.columns import MAIN

STUDY_TABLE = Path("tables") / "runs.parquet"
"""The table with one row per run, in the folder of a study."""

ROLE = "role"
"""The column that distinguishes the main runs of a study from its tuning runs."""

Floats = NDArray[np.float64]


def read_table(path: Path | str) -> pa.Table:
    """Read a table of runs.

    Args:
        path: A Parquet file, a CSV file with a header, or the folder of a study. A URL must be of a file.

    Returns:
        The table, with at least one row.

    Raises:
        AnalysisError: If the file is missing, is not a table, has no rows or has a column twice.
        TextError: If a URL cannot be read.
    """
    file = as_path(path)
    if file is not None and file.is_dir():
        file = file / STUDY_TABLE
    if file is not None and not file.is_file():
        raise AnalysisError(
            str(file or path),
            got="no such file",
            rule="must be a Parquet or CSV file, or the folder of a study",
            remedy="Give the path of a table; `reptrain study report` writes a study's tables.",
        )
    try:
        data = pa.BufferReader(read_bytes(path if file is None else file))
        if str(file or path).endswith(".csv"):
            table = pyarrow.csv.read_csv(data, convert_options=_CSV)
        else:
            table = pyarrow.parquet.read_table(data)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise AnalysisError(
            str(file or path),
            got=str(error).splitlines()[0],
            rule="must be a Parquet file, or a CSV file with a header",
            remedy="Fix the file; a CSV file must end in .csv.",
        ) from error
    twice = {name for name in table.column_names if table.column_names.count(name) > 1}
    if twice:
        raise AnalysisError(
            str(file or path),
            got=", ".join(sorted(twice)),
            rule="must have each column once",
            remedy="Rename or remove the duplicate column.",
        )
    if table.num_rows == 0:
        raise AnalysisError(
            str(file or path), got="no rows", rule="must have at least one run", remedy="Run the study first."
        )
    return table


# "nan" stays a number, so that a NaN loss is refused and not taken for a missing one.
_CSV = pyarrow.csv.ConvertOptions(null_values=[""], strings_can_be_null=True)


def check_positive(**quantities: float | None) -> None:
    """Refuse a quantity that is not finite and above zero. None is no quantity.

    Raises:
        AnalysisError: With the name of the first of them.
    """
    for name, value in quantities.items():
        if value is not None and not 0.0 < value < float("inf"):
            raise AnalysisError(
                name.replace("_", " "),
                got=value,
                rule="must be finite and above zero",
                remedy="Fix the value.",
            )


def column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column by its name, or by the dotted key that it holds: `a.b` for the column `set.a.b`.

    Raises:
        AnalysisError: If the table has no such column.
    """
    if name not in table.column_names and f"set.{name}" in table.column_names:
        name = f"set.{name}"
    if name not in table.column_names:
        raise AnalysisError(
            f"column {name}",
            got=f"the columns {', '.join(table.column_names)}",
            rule="must be a column of the table",
            remedy="Name one of its columns.",
        )
    return table[name]


def numbers(table: pa.Table, name: str) -> Floats:
    """A column of numbers. Missing values are NaN.

    Returns:
        float64, shape (rows,).

    Raises:
        AnalysisError: If the table has no such column, or a value is not a number.
    """
    values = column(table, name)
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        if values.null_count == len(values):
            return np.full(len(values), np.nan)
        raise AnalysisError(
            f"column {name}",
            got=f"the type {kind}",
            rule="must hold numbers",
            remedy="Fix the column, or name another.",
        )
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(), np.float64)


def values_of(table: pa.Table, name: str) -> list[Any]:
    """A column as Python values. Missing values are None."""
    return list(column(table, name).to_pylist())


def select(table: pa.Table, where: Mapping[str, Any]) -> pa.Table:
    """The rows whose columns have these values. A list means any of its values.

    Raises:
        AnalysisError: If a column does not exist, or no row is left.
    """
    keep = np.ones(table.num_rows, bool)
    for name, wanted in where.items():
        choices = wanted if isinstance(wanted, list | tuple) else [wanted]
        keep &= np.array([value in choices for value in values_of(table, name)], bool)
    if not keep.any():
        raise AnalysisError(
            "rows of the table",
            got=f"none with {', '.join(f'{k} = {v}' for k, v in where.items())}",
            rule="must include at least one row that matches `where`",
            remedy="Change `where`, or run the missing arms.",
        )
    return table.filter(pa.array(keep))


def main_runs(table: pa.Table) -> pa.Table:
    """The rows of main runs, without tuning runs. A table without the column role has main runs only."""
    if ROLE not in table.column_names:
        return table
    return rows_at(table, np.array([role in (MAIN, None) for role in values_of(table, ROLE)], bool))


def refuse_mixed(table: pa.Table, names: Sequence[str]) -> None:
    """Refuse rows that differ in a column, such as `numerics_version`: their values are not comparable.

    Args:
        table: Rows that are pooled.
        names: The columns; those that the table lacks are skipped, as are missing values.

    Raises:
        AnalysisError: If a column has several values.
    """
    for name in names:
        if name not in table.column_names:
            continue
        found = sorted({str(value) for value in values_of(table, name) if value is not None})
        if len(found) > 1:
            raise AnalysisError(
                f"column {name}",
                got=f"{len(found)} values: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}",
                rule="must have one value in rows that are pooled",
                remedy=f"Their losses are not comparable: select the rows of one {name}.",
            )


def rows_at(table: pa.Table, keep: NDArray[np.bool_]) -> pa.Table:
    """The rows at which `keep` is true."""
    return table.filter(pa.array(keep))
