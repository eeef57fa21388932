"""Tables of runs: one row for each run, one for each evaluation, with one schema."""

from typing import TYPE_CHECKING

from reptrain.lazy import on_first_use
from reptrain.tables.columns import EVALUATION_COLUMNS, RUN_COLUMNS, Column
from reptrain.tables.read_run import RunReading, read_run

if TYPE_CHECKING:
    from reptrain.tables.write import evaluations_table, runs_table, write_parquet

__all__ = [
    "EVALUATION_COLUMNS",
    "RUN_COLUMNS",
    "Column",
    "RunReading",
    "evaluations_table",
    "read_run",
    "runs_table",
    "write_parquet",
]

__getattr__ = on_first_use(
    __name__, {"evaluations_table": "write", "runs_table": "write", "write_parquet": "write"}
)
