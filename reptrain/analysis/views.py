"""Queries behind the figures of a report, in SQL over the tables ``runs`` and ``evaluations``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from reptrain.analysis.tables import values_of

_UNIQUE = "set.data.unique_tokens"
_ENTRY = "set.entry"
_DONE = "status = 'done' AND isfinite(loss_report_final_nats)"


@dataclass(frozen=True)
class View:
    """A query and its result.

    Attributes:
        name: A file name.
        sql: The query, for DuckDB.
        table: Its result.
        series: Columns whose values name a curve; empty if there is one curve.
    """

    name: str
    sql: str
    table: pa.Table
    series: tuple[str, ...] = ()


def query(sql: str, **tables: pa.Table) -> pa.Table:
    """The result of a query over tables, by name."""
    import duckdb

    with duckdb.connect(config={"threads": 1}) as connection:
        for name, table in tables.items():
            connection.register(name, table)
        return connection.sql(sql).to_arrow_table()


def loss_against_tokens(runs: pa.Table, evaluations: pa.Table) -> View:
    """Held-out loss of each arm during training, as a mean over its seeds.

    It is the loss on the report split, or on the selection split if the report split was not scored.
    """
    columns = "avg(loss_nats) AS loss_nats, min(loss_nats) AS lowest_nats, max(loss_nats) AS highest_nats"
    return _over_tokens(runs, evaluations, "loss-against-tokens", columns, "isfinite(loss_nats)")


def expert_load(runs: pa.Table, evaluations: pa.Table) -> View | None:
    """Load of the busiest expert of each arm between evaluations; None without sparse models."""
    if "expert_load" not in evaluations.column_names:
        return None
    columns = """avg(evaluations.expert_load) AS expert_load, min(evaluations.expert_load) AS lowest,
       max(evaluations.expert_load) AS highest, max(evaluations.experts_unused) AS experts_unused"""
    found = _over_tokens(runs, evaluations, "expert-load", columns, "evaluations.expert_load IS NOT NULL")
    return found if found.table.num_rows else None


def _over_tokens(runs: pa.Table, evaluations: pa.Table, name: str, columns: str, condition: str) -> View:
    """Columns of each arm against tokens, over its seeds, at the evaluations of the runs on held-out text."""
    split = "report" if "report" in values_of(evaluations, "split") else "select"
    sql = f"""SELECT evaluations.arm, evaluations.consumed_tokens, any_value(epoch) AS epoch,
       {columns},
       count(*) AS seeds
FROM evaluations JOIN runs USING (run)
WHERE split = '{split}' AND weights = 'own' AND node = 'train' AND {condition}
  AND source IS NOT DISTINCT FROM scored_source
GROUP BY evaluations.arm, evaluations.consumed_tokens
ORDER BY evaluations.arm, evaluations.consumed_tokens"""
    return View(name, sql, query(sql, runs=runs, evaluations=evaluations), ("arm",))


def by_epochs(runs: pa.Table, name: str, metric: str) -> View:
    """A metric against epochs, one curve for each setting of the other varied keys.

    Args:
        runs: The table of runs.
        name: Name of the view.
        metric: Column to average over seeds.
    """
    series = curve_keys(runs)
    columns = "".join(f"{quoted(key)}, " for key in series)
    sql = f"""SELECT {columns}unique_tokens, round(epochs, 6) AS epochs, avg({metric}) AS mean,
       min({metric}) AS lowest, max({metric}) AS highest, count({metric}) AS seeds
FROM runs
WHERE status = 'done' AND isfinite({metric})
GROUP BY ALL
ORDER BY {columns}epochs"""
    return View(name, sql, query(sql, runs=runs), tuple(series))


def loss_map(runs: pa.Table) -> View | None:
    """Final loss by epochs and a second quantity; None unless both vary."""
    second = next(
        (name for name in ("parameters_nonembedding", "consumed_tokens") if _varies(runs, name)), None
    )
    if second is None or not _varies(runs, "unique_tokens"):
        return None
    sql = f"""SELECT {second}, unique_tokens, round(avg(epochs), 6) AS epochs,
       avg(loss_report_final_nats) AS loss_nats, count(*) AS runs
FROM runs
WHERE {_DONE}
GROUP BY {second}, unique_tokens
ORDER BY {second}, unique_tokens"""
    return View("loss-map", sql, query(sql, runs=runs), (second,))


def gap(runs: pa.Table) -> View:
    """Final loss on held-out text minus final loss on training text, against epochs."""
    return by_epochs(runs, "gap", "gap_final_nats")


def cost(runs: pa.Table) -> View:
    """Training time of each arm, with FLOPs and speed."""
    sql = """SELECT arm, count(*) AS runs,
       sum(train_seconds * coalesce(num_devices, 1)) / 3600 AS device_hours,
       sum(train_flops) AS train_flops, avg(tokens_per_second) AS tokens_per_second, sum(cost_usd) AS cost_usd
FROM runs
WHERE train_seconds IS NOT NULL
GROUP BY arm
ORDER BY device_hours DESC, arm"""
    return View("cost", sql, query(sql, runs=runs), ("arm",))


def curve_keys(runs: pa.Table) -> list[str]:
    """The varied keys that name a curve over epochs: all but the subset's size and the seed.

    A key that follows from the subset's size and the keys before it, such as a tuned learning rate, is left
    out as well. The name of an arm comes first.
    """
    keys = [
        name for name in runs.column_names if name.startswith("set.") and name not in (_UNIQUE, "set.seed")
    ]
    keys.sort(key=lambda name: name != _ENTRY)
    known = [["" if size is None else str(size)] for size in _values(runs, "unique_tokens")]
    kept: list[str] = []
    for key in keys:
        values = [str(value) for value in values_of(runs, key)]
        if len({*values}) > 1 and not _follows(values, known):
            kept.append(key)
            known = [[*before, value] for before, value in zip(known, values, strict=True)]
    return kept


def _values(runs: pa.Table, name: str) -> Sequence[object]:
    return values_of(runs, name) if name in runs.column_names else [None] * runs.num_rows


def _follows(values: Sequence[str], known: Sequence[Sequence[str]]) -> bool:
    """Whether rows that agree in what is known agree in their values, and some rows do not agree in it."""
    by_known: dict[tuple[str, ...], set[str]] = {}
    for value, before in zip(values, known, strict=True):
        by_known.setdefault(tuple(before), set()).add(value)
    return len(by_known) > 1 and all(len(found) == 1 for found in by_known.values())


def _varies(runs: pa.Table, name: str) -> bool:
    return name in runs.column_names and len({str(v) for v in values_of(runs, name) if v is not None}) > 1


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'
