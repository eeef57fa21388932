"""The tables of a study: runs.parquet and evaluations.parquet, from its run folders in any state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from reptrain.config import RunConfig
from reptrain.config.fingerprint import differing_keys
from reptrain.errors import ReptrainError
from reptrain.runs.folder import RunFolder
from reptrain.study.build import build_graph
from reptrain.study.done_table import load_copies
from reptrain.study.graph import Graph, Node
from reptrain.study.node_results import result_columns
from reptrain.study.paths import run_path
from reptrain.study.schema import StudyConfig
from reptrain.study.scored_nodes import node_evaluations
from reptrain.tables import RunReading, evaluations_table, read_run, runs_table, write_parquet
from reptrain.tables.addresses import Address, below
from reptrain.tables.columns import MAIN, SETTING_PREFIX
from reptrain.tables.read_run import Row, identify

_OF_PARENT = "parent "


class StudyTables(NamedTuple):
    """The files that were written."""

    runs: str
    evaluations: str
    num_runs: int
    num_evaluations: int


def write_tables(
    study: StudyConfig, out: Path, *, tables: Address | None = None, usd_per_hour: float | None = None
) -> StudyTables:
    """Write ``runs.parquet`` and ``evaluations.parquet``; damaged and missing runs are rows with a status.

    Args:
        study: The study.
        out: Its folder.
        tables: Folder to write into, or its URL; None: ``out/tables``.
        usd_per_hour: Price of the machines of one run, for the column `cost_usd`.

    Raises:
        StudyError: If the study itself is wrong.
    """
    readings = study_readings(study, out, usd_per_hour=usd_per_hour)
    folder = tables if tables is not None else out / "tables"
    graph = build_graph(study, out)
    by_name = {reading.row["run"]: reading.row for reading in readings}
    runs = _runs_table(readings, graph, out)
    evaluations = evaluations_table(readings, node_evaluations(graph, out, by_name, study=study.name))
    written = StudyTables(
        str(below(folder, "runs.parquet")),
        str(below(folder, "evaluations.parquet")),
        runs.num_rows,
        evaluations.num_rows,
    )
    write_parquet(runs, written.runs)
    write_parquet(evaluations, written.evaluations)
    return written


def study_runs(study: StudyConfig, out: Path) -> pa.Table:
    """The table of runs, without writing it."""
    return _runs_table(study_readings(study, out), build_graph(study, out), out)


def _runs_table(readings: Sequence[RunReading], graph: Graph, out: Path) -> pa.Table:
    """The runs with their varied settings and the results of the commands on them."""
    varied = dict.fromkeys(key for node in graph.trainings for key in node.values)
    results = result_columns(graph, out)
    for reading in readings:
        reading.row |= results[reading.row["run"]]
    names = dict.fromkeys(name for columns in results.values() for name in columns)
    return runs_table(readings, [*varied], [*names])


def study_readings(study: StudyConfig, out: Path, *, usd_per_hour: float | None = None) -> list[RunReading]:
    """Every run of a study, those that tune included, in the order of the graph."""
    planned = build_graph(study, out).trainings
    scored, copies = _scored_store(planned, out), load_copies(out)
    readings: dict[str, RunReading] = {}
    for node in planned:
        readings[node.name] = reading = _reading(
            study,
            node,
            out,
            scored_store=scored,
            usd_per_hour=usd_per_hour,
            copy=copies.get(node.fingerprint),
        )
        if node.parent is not None:
            _take_over_fault(reading, readings[node.parent])
    return [*readings.values()]


def _take_over_fault(child: RunReading, parent: RunReading) -> None:
    """A run is no better than the run that its weights come from."""
    fault = str(parent.row["audit_verdict"]).removeprefix(_OF_PARENT)
    if fault in ("not exact", "cannot say") and child.row["audit_verdict"] in ("exact", "as planned"):
        child.row["audit_verdict"] = f"{_OF_PARENT}{fault}"


def _scored_store(planned: Sequence[Node], out: Path) -> str | None:
    """Fingerprint of the first store that all readable runs share, so that their losses are comparable."""
    shared: list[str] | None = None
    for node in planned:
        try:
            sources = RunFolder.open(run_path(out, node.name)).plan.sources
        except ReptrainError:
            continue
        stores = [source.store_fingerprint for source in sources]
        shared = stores if shared is None else [store for store in shared if store in stores]
    return shared[0] if shared else None


def _reading(
    study: StudyConfig,
    node: Node,
    out: Path,
    *,
    scored_store: str | None,
    usd_per_hour: float | None,
    copy: RunReading | None,
) -> RunReading:
    """The row of a training run: from its folder, or copied if it is only done elsewhere."""
    path = run_path(out, node.name)
    identity: Row = {
        "study": study.name,
        "arm": node.arm,
        "run": node.name,
        "seed": node.run.seed,
        "cluster": node.cluster,
        "role": MAIN if node.role == "arm" else node.role,
        "branch_of": node.branch.parent if node.branch else None,
        "node_fingerprint": node.fingerprint,
        **{f"{SETTING_PREFIX}{key}": value for key, value in node.values.items()},
    }
    if path.exists() and any((path / name).exists() for name in ("plan.json", "ledger.jsonl")):
        reading = read_run(path, scored_store=scored_store, usd_per_hour=usd_per_hour)
        if _is_another(node.run, path):
            reading = RunReading({"status": "other config", "audit_verdict": "not audited"})
    else:
        reading = RunReading({"status": "not run", "audit_verdict": "not audited"})
    if copy is not None and reading.row["status"] != "done":
        reading = copy
    return identify(reading, identity)


def _is_another(run: RunConfig, path: Path) -> bool:
    """Whether the run in a folder has other settings; False for a damaged one."""
    try:
        folder = RunFolder.open(path)
        config, run = folder.config, folder.with_recorded_parent(run)
    except ReptrainError:
        return False
    return all(differing_keys(config, run.on_device(device)) for device in ("cpu", "cuda"))
