"""The report of a study: one self-contained HTML page, rebuilt from its run folders."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa

from reptrain.config.load import dump_yaml
from reptrain.config.path_settings import path_texts
from reptrain.files import write_atomically
from reptrain.report.claim_lines import claim_lines
from reptrain.report.drawings import (
    Drawing,
    claims_drawing,
    fit_drawings,
    proxy_drawings,
    study_drawings,
    write_files,
)
from reptrain.report.figures import arm_figure, exposures_figure, loss_limits
from reptrain.report.findings import Findings, find
from reptrain.report.machine import machines
from reptrain.report.router_lines import read_routers, router_drawings, router_lines
from reptrain.report.svg import NUM_COLORS
from reptrain.report.table import ArmLine, arm_lines, setting_lines
from reptrain.report.tuning_lines import tuning_drawings, tuning_lines
from reptrain.study.cautions import cautions
from reptrain.study.collect import ArmRow, collect
from reptrain.study.grid import arms, hashed_settings, varied_keys
from reptrain.study.paths import config_path, report_path, run_path
from reptrain.study.schema import StudyConfig
from reptrain.study.verdict import verdict
from reptrain.study.words import label, settings_text
from reptrain.tables.columns import SETTING_PREFIX

_MOST_PANELS = 12
_MOST_LINES = 20


@dataclass(frozen=True)
class Panel:
    """A figure with its title."""

    title: str
    color: int
    svg: str


def build_report(study: StudyConfig, out: Path, *, figure_files: bool = False, paths: bool = False) -> Path:
    """Write ``out/report.html`` and the tables from the study's run folders, in any state.

    Args:
        study: The study.
        out: Its folder.
        figure_files: Whether to write each figure with its data to ``out/figures`` as well.
        paths: Whether the page names absolute paths and addresses; otherwise their last names stand for them.

    Returns:
        The page's path.

    Raises:
        StudyError: If the study itself is wrong.
        RunError: If a run folder cannot be read.
    """
    return write_report(study, out, figure_files=figure_files, paths=paths)[0]


def write_report(
    study: StudyConfig, out: Path, *, figure_files: bool = False, paths: bool = False
) -> tuple[Path, Findings]:
    """The same as `build_report`, with what analysis found."""
    page = report_path(out)
    page.parent.mkdir(parents=True, exist_ok=True)
    rows = collect(study, out)
    findings = find(study, out)
    drawings = _drawings(rows, findings, out)
    text = _render(study, rows, findings, drawings, out)
    write_atomically(page, text if paths else hide_paths(text, study, out))
    if figure_files:
        write_files(drawings, out / "figures")
    return page, findings


def hide_paths(page: str, study: StudyConfig, out: Path) -> str:
    """Replace absolute paths and addresses in a page by their last names.

    Args:
        page: The page's text.
        study: Its study, whose settings name stores and models.
        out: The study's folder.
    """
    named = {text for arm in arms(study) for text in path_texts(arm.config.model_dump(mode="json"))}
    hidden = {text for text in named if text.startswith("/") or "://" in text}
    folders = (out, out.resolve(), Path.cwd(), Path.home())
    hidden |= {str(folder) for folder in folders if folder.is_absolute() and folder != Path("/")}
    for text in sorted(hidden, key=len, reverse=True):
        page = page.replace(escape(text), escape(text.rstrip("/").rpartition("/")[2]))
    return page


def render(study: StudyConfig, rows: Sequence[ArmRow], out: Path) -> str:
    """The page as text.

    Args:
        study: The study.
        rows: Its table.
        out: Its folder, for the machines and the commands.
    """
    findings = find(study, out)
    return _render(study, rows, findings, _drawings(rows, findings, out), out)


def _render(
    study: StudyConfig, rows: Sequence[ArmRow], findings: Findings, drawings: Sequence[Drawing], out: Path
) -> str:
    has_panels = len(rows) <= _MOST_PANELS
    # The colors refer to the panels.
    lines = arm_lines(rows, colored=has_panels)
    return render_template(
        "report.html.j2",
        study=study,
        answer=verdict(rows),
        cautions=[*cautions(study, rows), *findings.cautions],
        claims=claim_lines(findings.claims),
        questions_hash=findings.questions_hash,
        fits=findings.fits,
        advice=findings.advice,
        lines=lines,
        setting_lines=setting_lines(rows) if len(lines) > _MOST_LINES else [],
        fold_lines=len(lines) > _MOST_LINES,
        tuning=tuning_lines(findings.tuned),
        routers=router_lines(rows, read_routers(rows, out)),
        several_seeds=len({row.seed for row in rows}) > 1,
        panels=_panels(rows, lines) if has_panels else [],
        drawings=drawings,
        exposures=exposures_figure(rows) if _show_exposures(rows) else "",
        machines=machines(rows, out),
        commands=_commands(out),
        run_commands=_run_commands(rows, out),
        fold_commands=not has_panels,
        hashed=hashed_settings(arms(study)),
        settings=dump_yaml(_shared_settings(study)),
    )


def render_template(name: str, **values: Any) -> str:
    """A page from one of the templates of this package, with style and script in it."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    template = environment.get_template(name)
    return template.render(style=_resource("report.css"), script=_resource("hover.js"), **values)


def _resource(name: str) -> str:
    return (files("reptrain.report") / name).read_text(encoding="utf-8")


def _show_exposures(rows: Sequence[ArmRow]) -> bool:
    return any(row.exposures for row in rows) and len(rows) <= _MOST_PANELS


def _drawings(rows: Sequence[ArmRow], findings: Findings, out: Path) -> list[Drawing]:
    command = f"reptrain study report {shlex.quote(str(out))}"
    claims = claims_drawing(findings.claims, command)
    names = arm_labels(rows, findings.runs)
    return [
        *([claims] if claims is not None else []),
        *study_drawings(findings.runs, findings.evaluations, names),
        *router_drawings(rows, read_routers(rows, out), findings.runs, names, command),
        *proxy_drawings(findings.claims, findings.runs, command),
        *fit_drawings(findings.fits, command),
        *tuning_drawings(findings.tuned, command),
    ]


def arm_labels(rows: Sequence[ArmRow], runs: pa.Table) -> dict[str, str]:
    """How figures name each arm, and each setting that is a mapping, by its text in the table of runs."""
    by_run = {row.arm: row for row in rows}
    names: dict[str, str] = {}
    for record in runs.to_pylist():
        row = by_run.get(record["run"])
        if row is None:
            names.setdefault(record["arm"], record["arm"])
            continue
        names[record["arm"]] = label(row)
        for column, value in record.items():
            axis = f"{column.removeprefix(SETTING_PREFIX)}."
            settings = {key: one for key, one in row.values.items() if key.startswith(axis)}
            if column.startswith(SETTING_PREFIX) and settings and str(value).startswith("{"):
                names[str(value)] = settings_text(settings)
    return names


def _panels(rows: Sequence[ArmRow], lines: Sequence[ArmLine]) -> list[Panel]:
    limits = loss_limits(rows)
    return [
        Panel(line.label, index % NUM_COLORS + 1, arm_figure(row, index, limits))
        for index, (row, line) in enumerate(zip(rows, lines, strict=True))
        if row.select.nats or row.report.nats
    ]


def _commands(out: Path) -> list[str]:
    """The commands that repeat the study, and this page."""
    return [
        _command("reptrain study run", out / "study.yaml", "--out", out),
        _command("reptrain study report", out),
    ]


def _run_commands(rows: Sequence[ArmRow], out: Path) -> list[str]:
    """The commands that repeat each run and its audit; none for a run that is done in another study."""
    lines = []
    for row in rows:
        if row.is_elsewhere:
            continue
        run = run_path(out, row.arm)
        lines.append(_command("reptrain train", config_path(out, row.arm), "--out", run))
        lines.append(_command("reptrain audit", run))
    return lines


def _command(name: str, *arguments: object) -> str:
    return " ".join([name, *(shlex.quote(str(argument)) for argument in arguments)])


def _shared_settings(study: StudyConfig) -> dict[str, Any]:
    """The resolved configuration of the first arm, without the keys that differ between arms."""
    settings: dict[str, Any] = arms(study)[0].config.model_dump(mode="json")
    for key in ["name", *varied_keys(study), *(["seed"] if len(study.all_seeds) > 1 else [])]:
        *parents, leaf = key.split(".")
        node: Any = settings
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(leaf, None)
    return settings
