"""Queries behind the figures of a report, in SQL over the tables ``runs`` and ``evaluations``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from reptrain.analysis.tables import values_of

_UNIQUE = "set.data.unique_tokens"
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
    split = "report" if "report" in values_of(evaluations, "split") else "select"
    sql = f"""SELECT evaluations.arm, evaluations.consumed_tokens, any_value(epoch) AS epoch,
       avg(loss_nats) AS loss_nats, min(loss_nats) AS lowest_nats, max(loss_nats) AS highest_nats,
       count(*) AS seeds
FROM evaluations JOIN runs USING (run)
WHERE split = '{split}' AND weights = 'own' AND node = 'train' AND isfinite(loss_nats)
  AND source IS NOT DISTINCT FROM scored_source
GROUP BY evaluations.arm, evaluations.consumed_tokens
ORDER BY evaluations.arm, evaluations.consumed_tokens"""
    return View("loss-against-tokens", sql, query(sql, runs=runs, evaluations=evaluations), ("arm",))


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


def expert_load(runs: pa.Table) -> View | None:
    """Load of the busiest expert at the end of training; None without sparse models."""
    if "expert_load" not in runs.column_names:
        return None
    sql = """SELECT arm, avg(expert_load) AS expert_load, min(expert_load) AS lowest,
       max(expert_load) AS highest, max(experts_unused) AS experts_unused, count(*) AS seeds
FROM runs
WHERE status = 'done' AND expert_load IS NOT NULL
GROUP BY arm
ORDER BY arm"""
    found = query(sql, runs=runs)
    return View("expert-load", sql, found, ("arm",)) if found.num_rows else None


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

    Keys that are tied to the subset's size or to a key before them are left out as well.
    """
    keys = [
        name for name in runs.column_names if name.startswith("set.") and name not in (_UNIQUE, "set.seed")
    ]
    sizes = values_of(runs, "unique_tokens") if "unique_tokens" in runs.column_names else []
    kept: list[str] = []
    for key in keys:
        values = values_of(runs, key)
        before = [sizes, *(values_of(runs, other) for other in kept)]
        if _varies(runs, key) and not any(_follows(values, other) for other in before):
            kept.append(key)
    return kept


def _follows(values: Sequence[object], others: Sequence[object]) -> bool:
    """Whether each of the other values comes with one value only, and the others vary."""
    pairs = {(str(one), str(value)) for one, value in zip(others, values, strict=False) if one is not None}
    return 1 < len({one for one, _ in pairs}) == len(pairs)


def _varies(runs: pa.Table, name: str) -> bool:
    return name in runs.column_names and len({str(v) for v in values_of(runs, name) if v is not None}) > 1


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'
