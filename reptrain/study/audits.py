"""Audit every run of a study, and keep the results in the run folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from reptrain.auditing.audit import audit
from reptrain.auditing.report import AuditReport, kept_report
from reptrain.errors import ReptrainError
from reptrain.study.build import build_graph
from reptrain.study.graph import Node
from reptrain.study.paths import run_path
from reptrain.study.schema import StudyConfig
from reptrain.tables import read_run

Audit = Callable[..., AuditReport]


@dataclass
class StudyAudits:
    """Audits the runs of studies, each finished run once.

    Args:
        inputs_audit: `reptrain.audit_inputs`, for studies with ``audit: inputs``. None: every audit is of
            level `windows`.
    """

    inputs_audit: Audit | None = None
    _finished: dict[Path, AuditReport] = field(default_factory=dict)
    _verified: set[str] = field(default_factory=set)

    def all_runs(self, study: StudyConfig, out: Path) -> dict[str, AuditReport]:
        """Audit every run of a study that has started, and keep each result as ``RUN/audit.json``.

        Args:
            study: The study. Its key `audit` is the level; with `none` no run is audited.
            out: Its folder.

        Returns:
            The reports in the run folders, by run. Each store is hashed once, with the first run on it.
        """
        return {
            node.name: self._audited(study, node, run_path(out, node.name))
            for node in self._begun(study, out)
        }

    def missing(self, study: StudyConfig, out: Path) -> None:
        """Audit each finished run without audit since its last step; keep the results."""
        for node in self._begun(study, out):
            row = read_run(run_path(out, node.name)).row
            if row.get("status") == "done" and row["audit_verdict"] == "not audited":
                run = run_path(out, node.name)
                self._finished[run] = self._audited(study, node, run)

    def _begun(self, study: StudyConfig, out: Path) -> list[Node]:
        if study.audit == "none":
            return []
        trainings = build_graph(study, out).trainings
        return [node for node in trainings if (run_path(out, node.name) / "plan.json").exists()]

    def _audited(self, study: StudyConfig, node: Node, run: Path) -> AuditReport:
        if run in self._finished:
            return self._finished[run]
        wanted = self.inputs_audit if study.audit == "inputs" else None
        stores = {source.store for source in node.run.sources.values()}
        report = _report(run, wanted, verify_store=not stores <= self._verified)
        if report.store_verified:
            self._verified |= stores
        return report


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
