"""A cache of the answers to the fits of a study, in its folder: unchanged runs are not fitted again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
from pydantic import ValidationError

from reptrain.analysis.answer import FitOptions, answer_fit
from reptrain.analysis.answers import FitAnswer
from reptrain.analysis.questions import FitQuestion
from reptrain.config.base import Frozen
from reptrain.files import write_atomically


class _Cache(Frozen):
    answers: dict[str, FitAnswer]


def answer_fits(
    questions: Sequence[tuple[FitQuestion, FitOptions]], table: pa.Table, file: Path
) -> list[FitAnswer]:
    """Answer fits, or read the answers from a file if question, options, table and code are the same.

    Args:
        questions: Each question with its options.
        table: One row per run.
        file: The file of the answers. One that cannot be read is replaced.
    """
    known = _read(file)
    code, rows = _code(), _digest(table)
    keys = [
        hashlib.sha256(f"{code} {rows} {question.model_dump_json()} {options}".encode()).hexdigest()
        for question, options in questions
    ]
    answers = {
        key: known.get(key) or answer_fit(question, table, options)
        for key, (question, options) in zip(keys, questions, strict=True)
    }
    if answers.keys() != known.keys():
        write_atomically(file, _Cache(answers=answers).model_dump_json())
    return [answers[key] for key in keys]


def _read(file: Path) -> dict[str, FitAnswer]:
    try:
        return dict(_Cache.model_validate_json(file.read_bytes()).answers)
    except (OSError, ValidationError):
        return {}


def _digest(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink)
    return hashlib.sha256(sink.getvalue()).hexdigest()


@cache
def _code() -> str:
    """A digest of the code of the fits."""
    sources = b"".join(path.read_bytes() for path in _modules(files("reptrain.analysis")))
    return hashlib.sha256(sources).hexdigest()


def _modules(folder: Traversable) -> list[Traversable]:
    found = []
    for path in sorted(folder.iterdir(), key=lambda each: each.name):
        if path.is_dir() and path.name != "__pycache__":
            found += _modules(path)
        elif path.name.endswith(".py"):
            found.append(path)
    return found
