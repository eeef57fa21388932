"""Run studies on the console: progress, failures, audits, the report and the answer."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from reptrain.auditing.report import AuditReport
from reptrain.cli.inputs_audit import inputs_audit
from reptrain.cli.study_display import study_display
from reptrain.errors import StudyError
from reptrain.report.claim_lines import claim_sentence
from reptrain.report.joint import write_joint_report
from reptrain.report.page import write_report
from reptrain.study import StudyConfig, collect, verdict
from reptrain.study.ask import read_study
from reptrain.study.audits import StudyAudits
from reptrain.study.bill import Bill
from reptrain.study.budget import over_budget
from reptrain.study.cautions import cautions
from reptrain.study.executor import Executor
from reptrain.study.grid import arms, hashed_settings
from reptrain.study.local_pool import LocalPool
from reptrain.study.looks import Place
from reptrain.study.runner import StudyRun, run_studies
from reptrain.study.slurm_options import SlurmOptions
from reptrain.study.words import hash_lines
from reptrain_launcher.worker import EXIT_STOPPED


@dataclass(frozen=True)
class RunMeans:
    """Where the runs of a study are executed."""

    executor: Executor
    launch: Sequence[str] | None
    """See `run_study`."""
    devices_per_run: int
    runs_at_once: int


def run_means(
    study: StudyConfig, out: Path, *, jobs: int | None, gpus: int | None, slurm: Sequence[str]
) -> RunMeans:
    """The executor for the options of `study run`.

    Args:
        study: The study.
        out: Its folder.
        jobs: Runs at once; None: the default.
        gpus: GPUs of each run, under Slurm on each node; None: the default.
        slurm: Options of sbatch; empty: this machine.

    Raises:
        StudyError: If an option is wrong, or this machine has no Slurm.
    """
    if slurm:
        from reptrain.study.slurm import SlurmExecutor

        options = SlurmOptions.parse(slurm, gpus=gpus, parallel=jobs)
        devices = options.nodes * (options.gpus_per_node or options.ranks_per_node)
        executor = SlurmExecutor(out / "slurm", options, name=study.name)
        return RunMeans(executor, None, devices, options.parallel)
    pool = LocalPool(jobs, gpus_per_job=gpus or 1)
    several = [sys.executable, "-m", "reptrain", "launch", "--gpus", str(gpus)] if gpus and gpus > 1 else None
    return RunMeans(pool, several, gpus or 1, pool.jobs)


def refuse_over_budget(bills: Mapping[str, Bill], budget: str) -> None:
    """Refuse studies whose unfinished runs together exceed a budget.

    Raises:
        StudyError: Naming both figures.
    """
    excess = over_budget([*bills.values()], budget)
    if excess is not None:
        raise StudyError(
            f"{'study' if len(bills) == 1 else 'studies'} {', '.join(bills)}",
            got=excess,
            rule="must fit in the budget",
            remedy="Remove arms or seeds, or raise --budget. `reptrain study plan` shows each arm.",
        )


def run_and_report(
    places: Sequence[Place], means: Sequence[RunMeans], *, done: str | Path | None = None
) -> int:
    """Run the unfinished nodes of studies, then audit all runs, write the reports and print the answers.

    After a stop signal nothing is audited or reported: a scheduler soon kills a job that it has signaled.

    Args:
        places: The studies, which run one after another.
        means: Where the runs of each are executed.
        done: See `StudyRun`.

    Returns:
        0: done and exact, or not audited. 1: a run failed or is not exact. 3: stopped by a signal.

    Raises:
        ConfigError: If the audits need torch and it is not installed.
    """
    for study, _ in places:
        for line in hash_lines(hashed_settings(arms(study))):
            typer.echo(line, err=True)
    audits = _audits(places)
    runs = [
        StudyRun(study, out, study_display, of.launch, of.executor, done)
        for (study, out), of in zip(places, means, strict=True)
    ]
    results = run_studies(runs, audits)
    for result in results:
        for outcome in result.outcomes:
            if outcome.reason:
                typer.echo(f"{outcome.arm}: {outcome.state}: {outcome.reason}", err=True)
    code = max(result.exit_code for result in results)
    if code == EXIT_STOPPED:
        typer.echo("no report: `reptrain study report` writes one of the finished runs", err=True)
        return code
    exact = [audit_and_report(place, audits, of_several=len(places) > 1) for place in places]
    return code or int(not all(exact))


def _audits(places: Sequence[Place]) -> StudyAudits:
    """The audits of studies.

    Raises:
        ConfigError: If a study asks for the level `inputs`, and torch is not installed.
    """
    needs_inputs = any(place.study.audit == "inputs" for place in places)
    return StudyAudits(inputs_audit("audit: inputs") if needs_inputs else None)


def audit_and_report(
    place: Place, audits: StudyAudits | None = None, *, of_several: bool = False, paths: bool = False
) -> bool:
    """Audit a study's runs, rebuild its report and print the answer.

    Args:
        place: The study and its folder.
        audits: The audits so far; None: none.
        of_several: Whether to print its name first.
        paths: Whether the page names absolute paths.

    Returns:
        Whether all audited runs are exact.
    """
    study, out = place
    if of_several:
        typer.echo(f"study {study.name}")
    reports = (audits or _audits([place])).all_runs(study, out)
    page, findings = write_report(study, out, figure_files=True, paths=paths)
    for line in audit_lines(reports):
        typer.echo(line)
    rows = collect(study, out)
    typer.echo(verdict(rows))
    for result in findings.claims:
        typer.echo(f"claim {claim_sentence(result)}")
    for caution in [*cautions(study, rows), *findings.cautions]:
        typer.echo(f"WARNING: {caution}", err=True)
    typer.echo(f"report: {page}")
    return all(report.exact for report in reports.values())


def audit_lines(reports: Mapping[str, AuditReport]) -> list[str]:
    """The number of exact runs by level of their audit, and a line for each other run."""
    exact = Counter(report.level for report in reports.values() if report.head() == "exact")
    lines = [
        f"audit: {number} run{'s are' if number > 1 else ' is'} exact (level {level})"
        for level, number in exact.items()
    ]
    return lines + [
        f"audit {run}: {report.head()} (level {report.level})"
        for run, report in reports.items()
        if report.head() != "exact"
    ]


def report_together(studies: Sequence[Path], page: Path) -> None:
    """Write one page for several studies and print their verdicts, judged together.

    Args:
        studies: Their folders, or YAML files of studies that have not run.
        page: The HTML file to write.
    """
    for result in write_joint_report([read_study(study) for study in studies], page):
        typer.echo(f"claim {claim_sentence(result, with_study=True)}")
    typer.echo(f"report: {page}")
