"""The audits of a study: their level, and which report a run keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reptrain.auditing.audit import audit
from reptrain.auditing.report import AuditReport, kept_report
from reptrain.cli.study_plan import bill_data, bill_text
from reptrain.config import RunConfig
from reptrain.runs import RunFolder
from reptrain.study import StudyConfig, collect, study_status
from reptrain.study.audits import StudyAudits
from reptrain.study.bill import Hardware, bill_of
from reptrain.study.build import build_graph
from reptrain.study.paths import run_path
from reptrain.study.status import status_text
from reptrain.study.write_tables import study_readings
from reptrain.training.loop import train
from reptrain.training.rebuilt_inputs import audit_inputs

MakeConfig = Callable[..., RunConfig]
SHORT = ["data.unique_tokens=256", "train.total_tokens=1epochs", "train.batch_windows=4"]


class Counted:
    """The audit at level `inputs`, with the number of its calls."""

    calls = 0

    def __call__(self, run: Path, **options: Any) -> AuditReport:
        self.calls += 1
        return audit_inputs(run, **options)


def study_of(tiny: MakeConfig) -> StudyConfig:
    """A study of one run."""
    return StudyConfig(name="s", base=tiny(*SHORT).model_dump(mode="json"), audit="inputs")


@pytest.fixture
def study(tiny: MakeConfig, tmp_path: Path) -> StudyConfig:
    """The study, whose run is done."""
    study = study_of(tiny)
    (node,) = build_graph(study, tmp_path).trainings
    train(node.run, run_path(tmp_path, node.name))
    return study


def test_study_audits_at_its_level_and_rebuilds_inputs_once(study: StudyConfig, tmp_path: Path) -> None:
    (node,) = build_graph(study, tmp_path).trainings
    run, inputs_audit = run_path(tmp_path, node.name), Counted()

    assert StudyAudits().all_runs(study.model_copy(update={"audit": "none"}), tmp_path) == {}
    assert kept_report(run) is None
    assert [row.audit_verdict for row in study_status(study, tmp_path)] == [None]

    windows = StudyAudits().all_runs(study.model_copy(update={"audit": "windows"}), tmp_path)
    assert [(report.level, report.exact) for report in windows.values()] == [("windows", True)]
    for _ in range(2):
        reports = StudyAudits(inputs_audit).all_runs(study, tmp_path)
        assert [(report.level, report.exact) for report in reports.values()] == [("inputs", True)]
    assert inputs_audit.calls == 1

    # The report of the higher level stays, here and in all tables.
    again = StudyAudits().all_runs(study.model_copy(update={"audit": "windows"}), tmp_path)
    assert again == reports
    assert audit(run).keep(run).level == "inputs"
    rows = study_status(study, tmp_path)
    assert [(row.audit_verdict, row.audit_level) for row in rows] == [("exact", "inputs")]
    assert "exact (audit of level inputs)" in status_text(rows, study.audit)
    assert [row.audit_level for row in collect(study, tmp_path)] == ["inputs"]
    assert [reading.row["audit_level"] for reading in study_readings(study, tmp_path)] == ["inputs"]


@pytest.mark.parametrize("level", ["windows", "inputs"])
def test_runs_that_were_audited_for_a_second_look_are_not_audited_again(
    study: StudyConfig, tmp_path: Path, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []

    def counted(run: Path, **options: Any) -> AuditReport:
        called.append(options)
        return audit(run, **options)

    monkeypatch.setattr("reptrain.study.audits.audit", counted)
    study = study.model_copy(update={"audit": level})
    inputs_audit = Counted()
    audits = StudyAudits(inputs_audit if level == "inputs" else None)
    audits.missing(study, tmp_path)
    (report,) = audits.all_runs(study, tmp_path).values()
    assert (report.level, report.exact, report.store_verified) == (level, True, True)
    assert len(called) + inputs_audit.calls == 1
    # Another command audits the run again, and for a second look only if it has no verdict.
    another = StudyAudits(inputs_audit if level == "inputs" else None)
    another.missing(study, tmp_path)
    assert len(called) + inputs_audit.calls == 1
    another.all_runs(study, tmp_path)
    assert len(called) == (2 if level == "windows" else 1)


def test_report_of_a_higher_level_is_replaced_when_the_run_has_changed(
    study: StudyConfig, tmp_path: Path
) -> None:
    (node,) = build_graph(study, tmp_path).trainings
    run = run_path(tmp_path, node.name)
    proved = audit_inputs(run)
    assert proved.keep(run) == proved

    # The same ledger, but its evidence is damaged.
    sound = (run / "plan.json").read_text()
    (run / "plan.json").write_text(sound + "\n")
    assert audit(run).keep(run).exit_code == 4
    assert kept_report(run) == audit(run)
    (run / "plan.json").write_text(sound)

    # Another head.
    proved.keep(run)
    folder = RunFolder.open(run)
    records = list(folder.ledger.lines())
    folder.ledger.remove()
    for line in records[:-1]:
        folder.ledger.append(line.record)
    cut = audit(run)
    assert cut.keep(run) == cut == kept_report(run)

    # An unreadable report is replaced too.
    (run / "audit.json").write_text("{}")
    assert cut.keep(run) == cut == kept_report(run)


def test_plan_names_the_level_of_the_audits(tiny: MakeConfig, tmp_path: Path) -> None:
    for level in ("windows", "inputs", "none"):
        chosen = study_of(tiny).model_copy(update={"audit": level})
        bill = bill_of(chosen, build_graph(chosen, tmp_path), tmp_path, Hardware())
        assert bill_data(bill)["audit"] == level
        assert f"audit: {level}" in bill_text(bill)
