"""Nodes that are done elsewhere: rows of a collected table with their audit (`study run --done TABLE`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from pydantic import TypeAdapter

from reptrain.errors import StudyError
from reptrain.files import read_small, write_atomically
from reptrain.runs.records import FrozenRecord
from reptrain.study.graph import Node

_COLUMNS = ("node_fingerprint", "status", "audit_verdict", "study", "run", "loss_select_best_nats")
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


def read_done(table: Path) -> DoneRows:
    """The rows of a runs.parquet that are done and exact.

    Raises:
        StudyError: If it is no such table.
    """
    try:
        rows = pyarrow.parquet.read_table(table, columns=[*_COLUMNS]).to_pylist()
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise StudyError(
            f"--done {table}",
            got=error,
            rule="must be a runs.parquet of `reptrain study collect`",
            remedy="Collect the other study again.",
        ) from error
    return {
        row["node_fingerprint"]: DoneRow(
            study=row["study"] or "",
            run=row["run"] or "",
            audit_verdict=row["audit_verdict"],
            loss_select_best_nats=row["loss_select_best_nats"],
        )
        for row in rows
        if row["node_fingerprint"] and row["status"] == "done" and row["audit_verdict"] in _PROVEN
    }


def add_done(out: Path, rows: DoneRows) -> None:
    """Add rows to those that a study's folder counts as done."""
    known = load_done(out) | rows
    data = {key: row.model_dump(mode="json") for key, row in known.items()}
    write_atomically(_path(out), json.dumps(data, indent=1) + "\n")


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
