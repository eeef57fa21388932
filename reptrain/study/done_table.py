"""Nodes that are done elsewhere: rows of a collected table with their audit (`study run --done TABLE`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from pydantic import TypeAdapter

from reptrain.errors import ReptrainError, StudyError
from reptrain.files import read_small, write_atomically
from reptrain.runs.records import FrozenRecord
from reptrain.study.graph import Node
from reptrain.tables import RunReading, write_parquet
from reptrain.tables.addresses import Address, beside, read_bytes
from reptrain.tables.columns import SETTING_PREFIX
from reptrain.tables.read_run import IDENTITY

_COLUMNS = ["node_fingerprint", "status", "audit_verdict", "study", "run", "loss_select_best_nats"]
_KEY = "node_fingerprint"
_FOLDER, _RUNS, _EVALUATIONS = "done", "runs.parquet", "evaluations.parquet"
_PROVEN = ("exact", "as planned")


class DoneRow(FrozenRecord):
    """A run of another study folder, with its audit.

    Attributes:
        study: Name of the study.
        run: Name of the run.
        audit_verdict: Verdict of its audit.
        loss_select_best_nats: Its lowest selection loss, by which tuning chooses.
    """

    study: str
    run: str
    audit_verdict: str
    loss_select_best_nats: float | None


DoneRows = dict[str, DoneRow]
"""Rows by the fingerprint of their node."""
_ADAPTER = TypeAdapter(DoneRows)


@dataclass(frozen=True)
class DoneTable:
    """The rows of a collected table that are done and exact.

    Attributes:
        rows: The columns that the decisions of the study need.
        runs: Their rows, without the varied settings.
        evaluations: Rows of their own evaluations, with the fingerprints of their nodes.
    """

    rows: DoneRows
    runs: pa.Table
    evaluations: pa.Table


def read_done(table: Address) -> DoneTable:
    """The rows of a runs.parquet that are done and exact, with those of the evaluations.parquet next to it.

    Raises:
        StudyError: If it is no such table.
        TextError: If a URL cannot be read.
    """
    try:
        runs = _read(table)
        rows = runs.select(_COLUMNS).to_pylist()
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        if isinstance(error, ReptrainError):
            raise
        raise StudyError(
            f"--done {table}",
            got=error,
            rule="must be a runs.parquet of `reptrain study collect`",
            remedy="Collect the other study again.",
        ) from error
    keep = [
        bool(row["node_fingerprint"]) and row["status"] == "done" and row["audit_verdict"] in _PROVEN
        for row in rows
    ]
    runs, rows = (
        runs.filter(pa.array(keep, pa.bool_())),
        [row for row, kept in zip(rows, keep, strict=True) if kept],
    )
    done = {
        row["node_fingerprint"]: DoneRow(
            study=row["study"] or "",
            run=row["run"] or "",
            audit_verdict=row["audit_verdict"],
            loss_select_best_nats=row["loss_select_best_nats"],
        )
        for row in rows
    }
    varied = [name for name in runs.column_names if name.startswith(SETTING_PREFIX)]
    return DoneTable(done, runs.drop_columns(varied), _evaluations(table, done))


def _read(table: Address) -> pa.Table:
    return pyarrow.parquet.read_table(pa.BufferReader(read_bytes(table)))


def _evaluations(table: Address, rows: DoneRows) -> pa.Table:
    """The rows of the runs' own evaluations; none if the table does not exist."""
    by_run = {(row.study, row.run): key for key, row in rows.items()}
    try:
        found = _read(beside(table, _EVALUATIONS))
        identities = found.select(["study", "run", "node"]).to_pylist()
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return pa.table({_KEY: pa.array([], pa.string())})
    keys = [by_run.get((one["study"], one["run"])) if one["node"] == "train" else None for one in identities]
    found = found.append_column(_KEY, pa.array(keys, pa.string()))
    return found.filter(pa.array([key is not None for key in keys], pa.bool_()))


def add_done(out: Path, done: DoneTable) -> None:
    """Add rows to those that a study's folder counts as done, and copy them for its tables."""
    known = load_done(out) | done.rows
    for name, table in ((_RUNS, done.runs), (_EVALUATIONS, done.evaluations)):
        path = out / _FOLDER / name
        if path.exists():
            before = _read(path)
            others = [key not in done.rows for key in before[_KEY].to_pylist()]
            before = before.filter(pa.array(others, pa.bool_()))
            table = pa.concat_tables([before, table], promote_options="permissive")
        write_parquet(table, path)
    data = {key: row.model_dump(mode="json") for key, row in known.items()}
    write_atomically(_path(out), json.dumps(data, indent=1) + "\n")


def load_copies(out: Path) -> dict[str, RunReading]:
    """The copied rows by the fingerprint of their node, with their origin."""
    path = out / _FOLDER / _RUNS
    if not path.exists():
        return {}
    copies = {
        row[_KEY]: RunReading(row | {"origin": row.get("origin") or f"{row['study']}/{row['run']}"})
        for row in _read(path).to_pylist()
    }
    for evaluation in _read(out / _FOLDER / _EVALUATIONS).to_pylist():
        reading = copies[evaluation.pop(_KEY)]
        reading.evaluations.append({k: v for k, v in evaluation.items() if k not in IDENTITY})
    return copies


def load_done(out: Path) -> DoneRows:
    """The rows that a study's folder counts as done."""
    try:
        return _ADAPTER.validate_json(read_small(_path(out)))
    except FileNotFoundError:
        return {}


def _path(out: Path) -> Path:
    return out / "done.json"


def to_run(nodes: Sequence[Node], here: Iterable[str], elsewhere: DoneRows) -> list[Node]:
    """The nodes that must run: those that are done nowhere, and inputs of theirs that are not in the folder.

    Args:
        nodes: All nodes that can run, inputs first.
        here: Names of those that are done in the folder.
        elsewhere: Rows of nodes that are done elsewhere.
    """
    done = {*here}
    by_name = {node.name: node for node in nodes}
    needed: set[str] = set()
    for node in reversed(nodes):
        is_wanted = node.name in needed or node.fingerprint not in elsewhere
        if node.name not in done and is_wanted:
            needed |= {node.name, *(name for name in node.inputs if name in by_name)}
    return [node for node in nodes if node.name in needed and node.name not in done]
