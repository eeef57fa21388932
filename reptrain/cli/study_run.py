"""Run a study on the console: progress, failures, audits, the report and the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from reptrain.progress import progress_display
from reptrain.report import build_report
from reptrain.study import StudyConfig, StudyEvent, collect, run_study, verdict
from reptrain.study.audits import audit_runs
from reptrain.study.cautions import cautions

_EVENT_TEXT = {"skipped": "already done", "failed": "failed", "stopped": "stopped", "start": "starting"}


def run_and_report(study: StudyConfig, out: Path, *, launch: Sequence[str] | None = None) -> int:
    """Run the unfinished arms of a study, then audit all runs, write the report and print the answer.

    Args:
        study: The study.
        out: Its folder.
        launch: See `run_study`.

    Returns:
        0: done and exact. 1: a run failed or is not exact. 3: stopped by a signal.
    """
    with study_progress() as on_event:
        result = run_study(study, out, on_event=on_event, launch=launch)
    for outcome in result.outcomes:
        if outcome.reason:
            typer.echo(f"{outcome.arm}: {outcome.state}: {outcome.reason}", err=True)
    all_exact = audit_and_report(study, out)
    return result.exit_code or int(not all_exact)


def audit_and_report(study: StudyConfig, out: Path) -> bool:
    """Audit a study's runs, rebuild its report and print the answer.

    Returns:
        Whether all runs are exact.
    """
    audits = audit_runs(study, out)
    page = build_report(study, out)
    for arm, report in audits.items():
        typer.echo(f"audit {arm}: {report.text().splitlines()[0]}")
    rows = collect(study, out)
    typer.echo(verdict(rows))
    for caution in cautions(study, rows):
        typer.echo(f"WARNING: {caution}", err=True)
    typer.echo(f"report: {page}")
    return all(report.exact for report in audits.values())


@contextmanager
def study_progress() -> Iterator[Callable[[StudyEvent], None]]:
    """A function that shows the events of a study, arm by arm."""
    with progress_display() as show:

        def on_event(event: StudyEvent) -> None:
            stage = f"[{event.index + 1}/{event.num_arms}] {event.arm}"
            show(stage, event.tokens, event.total_tokens, _event_text(event))

        yield on_event


def _event_text(event: StudyEvent) -> str:
    text = _EVENT_TEXT.get(event.kind, "")
    if event.kind in ("progress", "done") and event.tokens_per_s:
        text = f"{event.tokens_per_s:,.0f} tokens/s"
    return f"{text}: {event.message}" if event.message else text
