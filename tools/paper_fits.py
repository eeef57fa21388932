"""The fits of scaling laws on docs/paper.md: made once per state of the tables, and kept in fits.json.

A fit takes minutes, so `tools/paper_page.py --check` does not repeat it: it compares a digest of the tables
and of the question with the one in fits.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from reptrain.analysis.answer import FitOptions, answer_fit, compare_laws
from reptrain.analysis.answers import Comparison, Fit, FitAnswer
from reptrain.analysis.questions import FitQuestion, Holdout
from reptrain.analysis.tables import main_runs, read_table

_HELD_OUT = "held_out"


def fitted_lines(
    finding: Mapping[str, Any], data: Path, *, renew: bool, options: FitOptions | None = None
) -> list[str]:
    """What the laws of a finding say, as lines of Markdown.

    Args:
        finding: An entry of findings.yaml. Its `fits` names the tables, the laws, the columns of the laws'
            variables, the metric, and the values of columns (`held_out`) whose runs are not fitted.
        data: The folder of the tables and of fits.json.
        renew: Fit again if the tables or the question have changed.
        options: How to fit.

    Returns:
        No lines without `fits`, and while one of the tables is missing.

    Raises:
        SystemExit: If fits.json is older than the tables, and ``renew`` is false.
    """
    tables = fitted_tables(finding, data)
    if not tables:
        return []
    asked = finding["fits"]
    file, number = data / "fits.json", str(finding["number"])
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    digest = _digest(asked, tables)
    if known.get(number, {}).get("digest") != digest:
        if not renew:
            raise SystemExit(
                f"{file.name} does not match the tables of finding {number}: run `make paper-page`"
            )
        known[number] = {"digest": digest, "lines": _lines(asked, tables, options)}
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    lines: list[str] = known[number]["lines"]
    return lines


def fitted_tables(finding: Mapping[str, Any], data: Path) -> list[Path]:
    """The tables that the laws of a finding are fitted to; none while one of them is missing."""
    tables = [data / f"{name}.parquet" for name in finding.get("fits", {}).get("tables", [])]
    return tables if all(path.exists() for path in tables) else []


def _digest(asked: Mapping[str, Any], tables: list[Path]) -> str:
    parts = [json.dumps(asked, sort_keys=True).encode(), *(path.read_bytes() for path in tables)]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _lines(asked: Mapping[str, Any], tables: list[Path], options: FitOptions | None) -> list[str]:
    held_out = asked.get("held_out", {})
    questions = [
        FitQuestion(
            name=law,
            law=law,
            metric=asked["metric"],
            columns=asked["columns"],
            holdout=Holdout(column=_HELD_OUT) if held_out else None,
        )
        for law in asked["laws"]
    ]
    runs = _runs(tables, held_out, [asked["metric"], *asked["columns"].values()])
    answers = [answer_fit(question, runs, options) for question in questions]
    comparison = compare_laws(questions, runs, options) if len(questions) > 1 else None
    lines = [
        "| law | parameters, with 95% intervals | RMSE, fitted | RMSE, held out |",
        "|---|---|---:|---:|",
    ]
    lines += [_row(answer) for answer in answers]
    return [*lines, "", _chosen(comparison)] if comparison else lines


def _runs(tables: list[Path], held_out: Mapping[str, Any], columns: list[str]) -> pa.Table:
    """The finished main runs of the tables, each once, with a column that marks those that are held out."""
    names = list(dict.fromkeys(["node_fingerprint", "arm", "seed", "train_flops", *columns, *held_out]))
    rows: dict[str, dict[str, Any]] = {}
    for path in tables:
        runs = main_runs(read_table(path))
        for row in runs.filter(pc.equal(runs["status"], "done")).select(names).to_pylist():
            marked = {_HELD_OUT: any(row[name] == value for name, value in held_out.items())}
            # Arms of two studies may share a name.
            rows[row["node_fingerprint"]] = row | marked | {"arm": f"{path.stem}/{row['arm']}"}
    return pa.Table.from_pylist(list(rows.values()))


def _row(answer: FitAnswer) -> str:
    if answer.fit is None:
        return f"| {answer.law} | not fitted: {answer.refusal} | | |"
    held_out = answer.fit.holdout
    unseen = "" if held_out is None else f"{held_out.score.rmse_nats:.3f}"
    return f"| {answer.law} | {_parameters(answer.fit)} | {answer.fit.score.rmse_nats:.3f} | {unseen} |"


def _parameters(fit: Fit) -> str:
    shown = []
    for one in fit.parameters:
        interval = "" if one.low is None or one.high is None else f" [{one.low:.3g}, {one.high:.3g}]"
        shown.append(f"{one.name} = {one.value:.3g}{interval}{' (at its bound)' if one.at_bound else ''}")
    return ", ".join(shown)


def _chosen(comparison: Comparison) -> str:
    scores = ", ".join(f"{entry.law} {entry.mean_rmse_log:.4f}" for entry in comparison.scores)
    parts = [f"Cross-validation on the largest N and D, RMSE of the log loss: {scores or 'no law'}."]
    parts += [f"Not compared: {law} ({reason.rstrip('.')})." for law, reason in comparison.refused.items()]
    return " ".join([*parts, *([f"Chosen: {comparison.chosen}."] if comparison.chosen else [])])
