"""The report of a study: one self-contained HTML page, rebuilt from its run folders."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from reptrain.config.load import dump_yaml
from reptrain.files import write_atomically
from reptrain.report.figures import arm_figure, exposures_figure, held_out_figure, loss_limits
from reptrain.report.machine import machines
from reptrain.report.svg import NUM_COLORS
from reptrain.report.table import ArmLine, arm_lines
from reptrain.study.cautions import cautions
from reptrain.study.collect import ArmRow, collect
from reptrain.study.grid import arms, varied_keys
from reptrain.study.paths import config_path, report_path, run_path
from reptrain.study.schema import StudyConfig
from reptrain.study.verdict import verdict
from reptrain.study.write_tables import write_tables


@dataclass(frozen=True)
class Panel:
    """A figure with its title."""

    title: str
    color: int
    svg: str


def build_report(study: StudyConfig, out: Path) -> Path:
    """Write ``out/report.html`` and the tables from the study's run folders, in any state.

    Returns:
        The page's path.

    Raises:
        StudyError: If the study itself is wrong.
        RunError: If a run folder cannot be read.
    """
    page = report_path(out)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, render(study, collect(study, out), out))
    write_tables(study, out)
    return page


def render(study: StudyConfig, rows: Sequence[ArmRow], out: Path) -> str:
    """The page as text.

    Args:
        study: The study.
        rows: Its table.
        out: Its folder, for the machines and the commands.
    """
    room = files("reptrain.report")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((room / "report.html.j2").read_text(encoding="utf-8"))
    lines = arm_lines(rows)
    return template.render(
        study=study,
        style=(room / "report.css").read_text(encoding="utf-8"),
        answer=verdict(rows),
        cautions=cautions(study, rows),
        lines=lines,
        several_seeds=len({row.seed for row in rows}) > 1,
        overview=held_out_figure(rows) if _scored(rows) else "",
        panels=_panels(rows, lines),
        exposures=exposures_figure(rows) if any(row.exposures for row in rows) else "",
        machines=machines(rows, out),
        commands=_commands(rows, out),
        settings=dump_yaml(_shared_settings(study)),
    )


def _scored(rows: Sequence[ArmRow]) -> list[ArmRow]:
    return [row for row in rows if row.select.nats or row.report.nats]


def _panels(rows: Sequence[ArmRow], lines: Sequence[ArmLine]) -> list[Panel]:
    limits = loss_limits(rows)
    return [
        Panel(line.label, index % NUM_COLORS + 1, arm_figure(row, index, limits))
        for index, (row, line) in enumerate(zip(rows, lines, strict=True))
        if row.select.nats or row.report.nats
    ]


def _commands(rows: Sequence[ArmRow], out: Path) -> list[str]:
    """The commands that repeat the study, each run, each audit, and this page."""
    study = ["reptrain study run", out / "study.yaml", "--out", out]
    lines = [study]
    for row in rows:
        run = run_path(out, row.arm)
        lines.append(["reptrain train", config_path(out, row.arm), "--out", run])
        lines.append(["reptrain audit", run])
    lines.append(["reptrain study report", out])
    return [" ".join([str(line[0]), *(shlex.quote(str(part)) for part in line[1:])]) for line in lines]


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
