"""A task's files: rows as texts, in training, selection and reporting splits."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reptrain import random
from reptrain.config.load import apply_overrides, read_config, validate
from reptrain.config.task import KEY_IN_BRACES, TaskConfig, TaskLimits
from reptrain.errors import ConfigError, TextError
from reptrain.reading import Number, ReadError, decode, is_unicode, json_type, parse_object, split_lines
from reptrain.text.base import look_up

TASK_FILE = "task.yaml"
# Keys of an answer in SQuAD.
_SPAN = {"text", "answer_start", "answer_end", "answer_id"}
_SELECT_EXAMPLES = 256


class Row(NamedTuple):
    """A row of a task as texts."""

    input: str
    target: str
    answers: tuple[str, ...]
    """All correct answers; the target if the row names none."""
    group: str | None
    """Shared by rows of the same origin."""


def read_task(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a task, with its folder filled in.

    Args:
        path: A folder with a task.yaml, or such a file.
        overrides: Overrides KEY=VALUE.

    Raises:
        ConfigError: If there is no such file, or a value is not YAML.
    """
    file = path / TASK_FILE if path.is_dir() else path
    data = read_config(file)
    if isinstance(data.get("data"), str):
        # As `extends`: what a file names lies beside it, what an override names in the working directory.
        data["data"] = str(file.parent / data["data"])
    data = apply_overrides(data, overrides)
    return {"name": file.parent.name if file.name == TASK_FILE else file.stem, "data": str(file.parent)} | {
        key: value for key, value in data.items() if value is not None or key == "answers"
    }


def load_task(path: Path, overrides: Sequence[str] = ()) -> TaskConfig:
    """A task; see `read_task`.

    Raises:
        ConfigError: If anything in its file is wrong.
    """
    return validate(TaskConfig, read_task(path, overrides))


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task by split."""

    train: list[Row]
    select: list[Row]
    report: list[Row]
    files: dict[str, str]
    """SHA-256 of each file by its name."""
    left_out: int
    """Rows of all files whose input is too long."""


Fits = Callable[[list[Row]], list[bool]]
"""Returns for each row whether it is short enough."""


def read_rows(task: TaskConfig, limits: TaskLimits, fits: Fits | None = None) -> TaskRows:
    """Read the training, selection and reporting splits.

    The choice of rows depends on the files alone, so seeds and arms are comparable.

    Args:
        task: The task.
        limits: Number of rows in each split.
        fits: Selects the rows to use; None uses all.

    Raises:
        TextError: If a file is missing, or a row is invalid.
        ConfigError: If too few rows are left.
    """
    files = _Files(task, fits)
    train = _scattered(files.rows(task.train))
    if task.select is None:
        least = limits.select_examples or min(_SELECT_EXAMPLES, max(1, len(train) // 5))
        train, select = _keep_apart(train, least)
    else:
        least = limits.select_examples or _SELECT_EXAMPLES
        select = _scattered(files.rows(task.select))[:least]
    if not train or not select:
        raise _too_few(task, least, len(train) + len(select))
    if limits.train_examples is not None and limits.train_examples > len(train):
        raise ConfigError(
            "limits.train_examples",
            got=limits.train_examples,
            rule=f"must be at most {len(train)}, the training rows without the selection split",
            remedy="Lower it, or leave it out.",
        )
    report = _scattered(files.rows(task.report))[: limits.report_examples]
    return TaskRows(train[: limits.train_examples], select, report, files.hashes, files.left_out)


def _too_few(task: TaskConfig, least: int, rows: int) -> ConfigError:
    in_groups = "" if task.group is None else f" in whole groups of one {task.group!r} each"
    return ConfigError(
        "limits.select_examples",
        got=f"{least} for selection{in_groups}, of {rows} rows in all",
        rule="must leave rows for training and rows for selection",
        remedy="Lower it, name files under select in the task, or give more rows.",
    )


def read_report(task: TaskConfig, limits: TaskLimits, fits: Fits | None = None) -> list[Row]:
    """The rows of the reporting split; see `read_rows`.

    Raises:
        TextError: If a file is missing, or a row is invalid.
    """
    return _scattered(_Files(task, fits).rows(task.report))[: limits.report_examples]


def _scattered(rows: list[Row]) -> list[Row]:
    """Shuffle the rows by a fixed key."""
    order = np.argsort(random.key(0, "task rows", np.arange(len(rows))), kind="stable")
    return [rows[place] for place in order]


def _keep_apart(rows: list[Row], least: int) -> tuple[list[Row], list[Row]]:
    """Split off whole groups with at least ``least`` rows; a row without a group is a group of its own."""
    by_group: dict[str | int, list[Row]] = {}
    for place, row in enumerate(rows):
        by_group.setdefault(place if row.group is None else row.group, []).append(row)
    apart: list[Row] = []
    left: list[Row] = []
    for group in by_group.values():
        (left if len(apart) >= least else apart).extend(group)
    return _scattered(left), apart


class _Files:
    def __init__(self, task: TaskConfig, fits: Fits | None) -> None:
        assert task.data is not None
        self._task, self._folder, self._fits = task, Path(task.data), fits
        self.hashes: dict[str, str] = {}
        self.left_out = 0

    def rows(self, patterns: Sequence[str]) -> list[Row]:
        found = [row for pattern in patterns for path in self._matching(pattern) for row in self._read(path)]
        if not found:
            raise TextError(
                f"task {self._task.name}",
                got=f"no row in {', '.join(patterns)}",
                rule="must have rows in its files",
                remedy="Write one JSON object per line.",
            )
        if self._fits is None:
            return found
        fitting = list(itertools.compress(found, self._fits(found)))
        self.left_out += len(found) - len(fitting)
        return fitting

    def _matching(self, pattern: str) -> list[Path]:
        try:
            found = sorted(self._folder.glob(pattern))
        except (NotImplementedError, OSError, ValueError) as error:
            raise TextError(
                f"task {self._task.name}",
                got=f"the pattern {pattern!r}",
                rule="must have patterns below its folder",
                remedy="Set the task's data to the folder of its files.",
            ) from error
        if not found:
            raise TextError(
                f"task {self._task.name}",
                got=f"no file {self._folder / pattern}",
                rule="must have its files",
                remedy="Set the task's data to their folder.",
            )
        return found

    def _read(self, path: Path) -> Iterator[Row]:
        try:
            data = path.read_bytes()
            self.hashes[path.name] = hashlib.sha256(data).hexdigest()
            text = decode(gzip.decompress(data) if path.suffix == ".gz" else data)
        except (OSError, EOFError, zlib.error) as error:
            raise TextError(
                f"file {path}", got=error, rule="must be readable, plain or gzip", remedy="Restore the file."
            ) from error
        except ReadError as error:
            raise TextError(f"file {path}", got=error.got, rule=error.rule, remedy=error.remedy) from error
        for number, line in enumerate(split_lines(text), start=1):
            if line.strip():
                yield self._row(f"{path}, line {number}", line)

    def _row(self, place: str, line: str) -> Row:
        task = self._task
        try:
            record = parse_object(line, numbers_as_text=True)
        except ReadError as error:
            raise TextError(place, got=error.got, rule=error.rule, remedy=error.remedy) from error
        read, target = (
            KEY_IN_BRACES.sub(lambda key: _text_under(place, record, key[1]), form)
            for form in (task.input, task.target)
        )
        if not target.strip():
            raise _wrong_row(place, "an empty target", "hold a target")
        if task.labels is not None and target not in task.labels:
            raise _wrong_row(place, f"the target {target!r}", f"hold one of the task's labels {task.labels}")
        given = None if task.answers is None else record.get(task.answers)
        answers = (target,) if given is None else _answers(place, given, str(task.answers))
        group = None if task.group is None else _text_under(place, record, task.group)
        return Row(read, target, answers, group)


def _text_under(place: str, record: Mapping[str, Any], key: str) -> str:
    """The text or number under a key; a dot selects a key of a nested object.

    Raises:
        TextError: If there is none.
    """
    value = look_up(record, key)
    if value is None and key not in record:
        keys = ", ".join(sorted(record)) or "no keys"
        raise _wrong_row(place, f"no {key!r} but {keys}", "have the keys that the task names")
    return _text(place, value, key)


def _text(place: str, value: object, key: str) -> str:
    """A value as a text; nothing but a text or a number is one.

    Raises:
        TextError: If it is something else.
    """
    if not isinstance(value, str):
        raise _wrong_row(place, f"{json_type(value)} under {key!r}", "hold a text or a number there")
    if not is_unicode(value):
        raise _wrong_row(place, f"half of a surrogate pair under {key!r}", "hold valid Unicode")
    # Not a Number, so that rows compare and print as texts.
    return str.__str__(value) if isinstance(value, Number) else value


def _answers(place: str, given: object, key: str) -> tuple[str, ...]:
    """The answers of a row: a list of them, or SQuAD's forms.

    ["alpha", "beta"], {"text": ["alpha", "beta"], "answer_start": [0, 9]} and
    [{"text": "alpha", "answer_start": 0}, {"text": "beta", "answer_start": 9}]  ->  ("alpha", "beta")

    Raises:
        TextError: If it is of another form, or holds no answer.
    """
    values = given
    if isinstance(values, dict) and values.keys() <= _SPAN:
        values = values.get("text")
        values = [values] if isinstance(values, str) else values
    if not isinstance(values, list) or not values:
        got = "no answer" if values == [] else json_type(given)
        raise _wrong_row(
            place,
            f"{got} under {key!r}",
            'hold a list of answers there, or {"text": [...], "answer_start": [...]}',
        )
    spans = [
        value["text"] if isinstance(value, dict) and "text" in value and value.keys() <= _SPAN else value
        for value in values
    ]
    return tuple(_text(place, value, key) for value in spans)


def _wrong_row(place: str, got: object, rule: str) -> TextError:
    return TextError(place, got=got, rule=f"must {rule}", remedy="Fix the line, or the task's file.")
