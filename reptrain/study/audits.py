"""Audit every run of a study, and keep the results in the run folders."""

from __future__ import annotations

from pathlib import Path

from reptrain.auditing.audit import audit
from reptrain.auditing.report import AuditReport
from reptrain.errors import ReptrainError
from reptrain.study.build import build_graph
from reptrain.study.paths import run_path
from reptrain.study.schema import StudyConfig
from reptrain.tables import read_run


def audit_runs(study: StudyConfig, out: Path) -> dict[str, AuditReport]:
    """Audit every run of a study that has started, and write each result to ``RUN/audit.json``.

    Args:
        study: The study.
        out: Its folder.

    Returns:
        The audits by run. Each store is hashed once, with the first run on it.
    """
    reports: dict[str, AuditReport] = {}
    verified: set[str] = set()
    for node in build_graph(study, out).trainings:
        run = run_path(out, node.name)
        if not (run / "plan.json").exists():
            continue
        stores = {source.store for source in node.run.sources.values()}
        report = _audit(run, verify_store=not stores <= verified)
        if report.store_verified:
            verified |= stores
        report.keep(run)
        reports[node.name] = report
    return reports


def audit_missing(study: StudyConfig, out: Path) -> None:
    """Audit every finished run that has no audit since its last step, and keep the results."""
    for node in build_graph(study, out).trainings:
        run = run_path(out, node.name)
        row = read_run(run).row if (run / "plan.json").exists() else {}
        if row.get("status") == "done" and row["audit_verdict"] == "not audited":
            _audit(run, verify_store=False).keep(run)


def _audit(run: Path, *, verify_store: bool) -> AuditReport:
    """The audit of a run. A damaged run gets a report too, so that the others are audited."""
    try:
        return audit(run, verify_store=verify_store)
    except ReptrainError as error:
        return AuditReport.impossible(str(error))
