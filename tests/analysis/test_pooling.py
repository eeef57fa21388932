"""Rows that must not be pooled: other versions of the numerics, other held-out text, unfinished runs."""

from __future__ import annotations

import pyarrow as pa
import pytest
from made_tables import COLUMNS, TRUTH, made_table

from reptrain.analysis.laws import find_law
from reptrain.analysis.points import points_of
from reptrain.analysis.tables import refuse_mixed
from reptrain.errors import AnalysisError


@pytest.mark.parametrize(("column", "values"), [("numerics_version", [2, 3]), ("measure", ["a", "b"])])
def test_a_fit_refuses_runs_that_are_not_comparable(column: str, values: list[object]) -> None:
    table = made_table("chinchilla", TRUTH["chinchilla"], noise=0.0, seed=0, num_runs=30)
    columns = {name: COLUMNS[name] for name in "ND"}
    mixed = table.append_column(column, pa.array([values[index % 2] for index in range(30)]))
    with pytest.raises(AnalysisError, match=f"column {column}.*one value"):
        points_of(mixed, find_law("chinchilla"), metric="loss", columns=columns)
    # A missing value is not another one.
    same = table.append_column(column, pa.array([values[0], None] * 15))
    assert len(points_of(same, find_law("chinchilla"), metric="loss", columns=columns)) == 30


def test_a_fit_leaves_out_unfinished_runs() -> None:
    table = made_table("chinchilla", TRUTH["chinchilla"], noise=0.0, seed=0, num_runs=30)
    table = table.append_column("status", pa.array(["done", "running", "preempted"] * 10))
    # A run that has not ended may have other measures too.
    table = table.append_column("measure", pa.array(["a", "b", "b"] * 10))
    points = points_of(
        table, find_law("chinchilla"), metric="loss", columns={name: COLUMNS[name] for name in "ND"}
    )
    assert (len(points), points.left_out) == (10, 20)


def test_refuse_mixed_skips_columns_that_a_table_lacks() -> None:
    refuse_mixed(pa.table({"loss": [1.0, 2.0]}), ("numerics_version", "measure"))
