"""The main job on real text, from its first byte to the answer."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import typer

from reptrain.files import write_atomically
from reptrain.progress import stage_progress, study_progress
from reptrain.report import build_report
from reptrain.store import open_store, split_warnings
from reptrain.study import StudyConfig, StudyResult, collect, demo_study, run_study, verdict
from reptrain.study.audits import audit_runs
from reptrain.study.cautions import cautions
from reptrain.text import read_documents, stdlib_documents
from reptrain.tokenization import tokenize

_QUICK_DOCUMENTS = 1500
_PIECE_CHARACTERS = 1000
_LARGEST_SUBSET, _QUICK_SUBSET = 2**18, 2**13
_QUICK = [
    "train.total_tokens=2**15",
    "axes.data.unique_tokens=[2**13, 2**11, 2**9]",
    "data.window_tokens=64",
    "train.batch_windows=16",
    "evaluate.max_windows=16",
    "evaluate.every_fraction=0.25",
]


def run_demo(out: Path, *, text: Sequence[Path], quick: bool, store_only: bool = False) -> int:
    """Tokenize, train three times, audit, report. What is sealed or done already is used again.

    Args:
        out: Folder of store, study and report.
        text: The user's files; none takes the documentation that comes with Python.
        quick: A third of the text, and a thirty-second of the training.
        store_only: End with the store, for runs of one's own on it.

    Returns:
        The exit code.

    Raises:
        ReptrainError: If the text, or a folder that is there already, does not fit.
    """
    out.mkdir(parents=True, exist_ok=True)
    store = out / "store"
    with stage_progress() as progress:
        sources = [_in_pieces(path, out) for path in text] or [_write_stdlib(out, quick)]
        manifest = tokenize(sources, store, processes=os.cpu_count() or 1, progress=progress)
    if store_only:
        for warning in split_warnings(manifest):
            typer.echo(f"WARNING: {warning}", err=True)
        typer.echo(f"store: {store}")
        return 0
    study = demo_study([f"data.store={store}", *(_QUICK if quick else []), *_for_small(store, quick)])
    return carry_out(study, out)


def _for_small(store: Path, quick: bool) -> list[str]:
    """Settings for a store smaller than the largest subset: the same epochs over smaller ones."""
    there = open_store(store).split("train").num_tokens
    if there >= (_QUICK_SUBSET if quick else _LARGEST_SUBSET):
        return []
    largest = 1 << (there.bit_length() - 1)
    subsets = [largest, largest >> 2, largest >> 4]
    typer.echo(
        f"The store holds {there:,} training tokens: the subsets are {', '.join(f'{n:,}' for n in subsets)}."
    )
    return [f"train.total_tokens={4 * largest}", f"axes.data.unique_tokens={subsets}"]


def carry_out(study: StudyConfig, out: Path, *, launch: Sequence[str] | None = None) -> int:
    """Run what is not done of a study, audit it, write its report and tell its answer.

    Returns:
        0: done and exact. 1: a run failed or is not exact. 3: stopped by a signal.
    """
    with study_progress() as on_event:
        result = run_study(study, out, on_event=on_event, launch=launch)
    _tell_failures(result)
    exact = tell(study, out)
    return result.exit_code or int(not exact)


def tell(study: StudyConfig, out: Path) -> bool:
    """Audit a study's runs, rebuild its report and print its answer; whether all runs are exact."""
    reports = audit_runs(study, out)
    page = build_report(study, out)
    for arm, report in reports.items():
        typer.echo(f"audit {arm}: {report.text().splitlines()[0]}")
    rows = collect(study, out)
    typer.echo(verdict(rows))
    for caution in cautions(study, rows):
        typer.echo(f"WARNING: {caution}", err=True)
    typer.echo(f"report: {page}")
    return all(report.exact for report in reports.values())


def _in_pieces(path: Path, out: Path) -> Path:
    """A .txt file as .jsonl of pieces of whole paragraphs, since one document cannot be split into sets."""
    if path.suffix != ".txt":
        return path
    pieces: list[str] = [""]
    for paragraph in next(iter(read_documents(path))).text.split("\n\n"):
        if len(pieces[-1]) >= _PIECE_CHARACTERS:
            pieces.append("")
        pieces[-1] += paragraph + "\n\n"
    made = out / f"{path.stem}.jsonl"
    rows = ({"id": f"{path.name}:{number}", "text": piece} for number, piece in enumerate(pieces))
    write_atomically(made, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return made


def _tell_failures(result: StudyResult) -> None:
    for outcome in result.outcomes:
        if outcome.reason:
            typer.echo(f"{outcome.arm}: {outcome.state}: {outcome.reason}", err=True)


def _write_stdlib(out: Path, quick: bool) -> Path:
    """Python's documentation, or its first pieces, as one .jsonl file; one that is there already is kept."""
    path = out / f"python-docs{'-quick' * quick}.jsonl"
    if not path.exists():
        documents = islice(stdlib_documents(), _QUICK_DOCUMENTS if quick else None)
        rows = ({"id": document.id, "text": document.text} for document in documents)
        write_atomically(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path
