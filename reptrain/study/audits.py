"""Audit every run of a study, and keep the results in the run folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reptrain.auditing.audit import audit
from reptrain.auditing.report import AuditReport, kept_report
from reptrain.errors import ReptrainError
from reptrain.study.build import build_graph
from reptrain.study.paths import run_path
from reptrain.study.schema import StudyConfig
from reptrain.tables import read_run

Audit = Callable[..., AuditReport]


def audit_runs(study: StudyConfig, out: Path, *, inputs_audit: Audit | None = None) -> dict[str, AuditReport]:
    """Audit every run of a study that has started, and keep each result as ``RUN/audit.json``.

    Args:
        study: The study. Its key `audit` is the level; with `none` no run is audited.
        out: Its folder.
        inputs_audit: `reptrain.audit_inputs`, required at level `inputs`.

    Returns:
        The reports in the run folders, by run. Each store is hashed once, with the first run on it.
    """
    if study.audit == "none":
        return {}
    assert study.audit == "windows" or inputs_audit is not None
    reports: dict[str, AuditReport] = {}
    verified: set[str] = set()
    for node in build_graph(study, out).trainings:
        run = run_path(out, node.name)
        if not (run / "plan.json").exists():
            continue
        stores = {source.store for source in node.run.sources.values()}
        wanted = inputs_audit if study.audit == "inputs" else None
        report = _report(run, wanted, verify_store=not stores <= verified)
        if report.store_verified:
            verified |= stores
        reports[node.name] = report
    return reports


def audit_missing(study: StudyConfig, out: Path) -> None:
    """Audit each finished run without audit since its last step, at level `windows`; keep the results."""
    if study.audit == "none":
        return
    for node in build_graph(study, out).trainings:
        run = run_path(out, node.name)
        row = read_run(run).row if (run / "plan.json").exists() else {}
        if row.get("status") == "done" and row["audit_verdict"] == "not audited":
            _audit(audit, run, verify_store=False).keep(run)


def _report(run: Path, inputs_audit: Audit | None, *, verify_store: bool) -> AuditReport:
    """The audit of a run, kept in its folder.

    The inputs are a function of ledger, configuration and store. They are rebuilt once, and again only if the
    audit of the cheaper level finds a change in one of these.
    """
    kept = kept_report(run)
    if inputs_audit is None or (kept is not None and kept.level == "inputs"):
        report = _audit(audit, run, verify_store=verify_store).keep(run)
        if inputs_audit is None or report.level == "inputs" or report.cannot_say:
            return report
    return _audit(inputs_audit, run, verify_store=verify_store).keep(run)


def _audit(carry_out: Audit, run: Path, *, verify_store: bool) -> AuditReport:
    """The audit of a run. A damaged run gets a report too, so that the others are audited."""
    try:
        return carry_out(run, verify_store=verify_store)
    except ReptrainError as error:
        return AuditReport.impossible(str(error))
