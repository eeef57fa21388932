"""Make tasks from SQuAD's JSON files, and from folders saved by the `datasets` library."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from reptrain.config.load import dump_yaml, validate
from reptrain.config.task import TaskConfig
from reptrain.errors import ConfigError, TextError
from reptrain.files import write_atomically
from reptrain.tasks.files import TASK_FILE

TRAIN_FILE, REPORT_FILE = "train-00.jsonl.gz", "validation.jsonl.gz"
_TRAIN_NAMES, _REPORT_NAMES = ("train",), ("validation", "dev", "valid", "test")
_SQUAD = {
    "kind": "qa",
    "group": "title",
    "separator": " answer:",
}
_REMEDY = "Check the path, and that the file is whole."


class Prepared(NamedTuple):
    """The written task."""

    path: str
    """The task's folder."""
    train: int
    """Rows to train on."""
    report: int
    """Rows of the reporting split."""
    unanswerable: int
    """Questions without an answer, left out."""

    def text(self) -> str:
        """The counts as text."""
        left_out = f", {self.unanswerable:,} without an answer left out" if self.unanswerable else ""
        return f"{self.path}: {self.train:,} rows to train on, {self.report:,} to report{left_out}"


def prepare_squad(source: Path, out: Path, *, validation: Path | None = None) -> Prepared:
    """Make a task of SQuAD, with the files and keys that configs/tasks/squad.yaml reads.

    Args:
        source: A JSON file such as train-v1.1.json, a folder saved by `datasets`, or one of both splits.
        out: The folder to create.
        validation: The reporting split, if ``source`` is a single split.

    Raises:
        TextError: If a file has another format.
        ConfigError: If a split is missing, or ``out`` is not empty.
    """
    found = _squad_splits(source, validation)
    splits = {
        name: [text for row in rows if (text := _squad_text(row, where)) is not None]
        for name, (rows, where) in found.items()
    }
    read = sum(len(rows) for rows, _ in found.values())
    _write(out, splits, {"name": "squad", **_SQUAD})
    kept = sum(map(len, splits.values()))
    return Prepared(str(out), len(splits["train"]), len(splits["report"]), read - kept)


def prepare_rows(
    source: Path, out: Path, settings: dict[str, Any], *, validation: Path | None = None
) -> Prepared:
    """Make a task of the rows of a folder that `datasets` saved, with the keys that they have.

    Args:
        source: The folder of a DatasetDict, or of one split.
        out: The folder to create.
        settings: Settings of task.yaml: kind, input, target and so on.
        validation: The reporting split, if ``source`` is a single split.

    Raises:
        TextError: If a folder has another format.
        ConfigError: If a split is missing, the settings are wrong, or ``out`` is not empty.
    """
    found = {name: _saved(path) for name, path in _split_paths(source, validation, suffix=None).items()}
    splits = {name: [_json_row(row) for row in rows] for name, rows in found.items()}
    _write(out, splits, {"name": out.resolve().name, **settings})
    return Prepared(str(out), len(splits["train"]), len(splits["report"]), 0)


def _write(out: Path, splits: dict[str, list[dict[str, Any]]], settings: dict[str, Any]) -> None:
    task = {**settings, "train": TRAIN_FILE, "report": REPORT_FILE}
    validate(TaskConfig, {**task, "data": str(out)})
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            "--out",
            got=f"{out}, which is not empty",
            rule="must be new or empty",
            remedy="Choose another folder.",
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, file in (("train", TRAIN_FILE), ("report", REPORT_FILE)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in splits[name])
        # No timestamp, so that equal rows give equal files.
        write_atomically(out / file, gzip.compress(lines.encode(), mtime=0))
    write_atomically(out / TASK_FILE, dump_yaml(task))


def _split_paths(source: Path, validation: Path | None, *, suffix: str | None) -> dict[str, Path]:
    """The paths of both splits: as given, or found in the folder ``source`` by their names."""
    if validation is not None:
        return {"train": source, "report": validation}
    found = {}
    inside = sorted(source.iterdir()) if source.is_dir() else []
    candidates = [path for path in inside if path.is_dir() or (suffix and path.suffix == suffix)]
    for use, names in (("train", _TRAIN_NAMES), ("report", _REPORT_NAMES)):
        named = [path for name in names for path in candidates if path.name.lower().startswith(name)]
        if not named:
            raise ConfigError(
                f"task source {source}",
                got=f"no {' or '.join(names)} there" if source.is_dir() else "one file or none",
                rule="must be a folder with a training split and a report split, or one of two splits",
                remedy="Pass the training split as SOURCE and the report split with --validation.",
            )
        found[use] = named[0]
    return found


Rows = tuple[list[dict[str, Any]], str]


def _squad_splits(source: Path, validation: Path | None) -> dict[str, Rows]:
    paths = _split_paths(source, validation, suffix=".json")
    return {
        use: (_saved(path) if path.is_dir() else list(_squad_json(path)), str(path))
        for use, path in paths.items()
    }


def _squad_json(path: Path) -> Iterator[dict[str, Any]]:
    """The questions of a JSON file of SQuAD, flat as the `datasets` library has them."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        for article in data["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield {
                        "id": question["id"],
                        "title": article.get("title", ""),
                        "context": paragraph["context"],
                        "question": question["question"],
                        "answers": question["answers"],
                    }
    except (OSError, ValueError, RecursionError) as error:
        raise TextError(f"file {path}", got=error, rule="must be a JSON file", remedy=_REMEDY) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise _no_squad(str(path), error) from error


def _squad_text(row: dict[str, Any], where: str) -> dict[str, Any] | None:
    """A question as a row of the task; None where it has no answer."""
    try:
        answers = _answer_texts(row["answers"])
        question, context, title = (row[key] for key in ("question", "context", "title"))
        if not all(isinstance(text, str) for text in (question, context, title, *answers)):
            raise TypeError("a value that is no text")
    except (KeyError, TypeError) as error:
        raise _no_squad(where, error) from error
    if not answers:
        return None
    return {
        "id": row.get("id"),
        "title": title,
        "input": f"question: {question} context: {context}",
        "target": answers[0],
        "answers": list(dict.fromkeys(answers)),
    }


def _answer_texts(answers: Any) -> list[str]:
    """The texts in either form: a list of {"text": ...}, or {"text": [...]}."""
    texts = answers["text"] if isinstance(answers, dict) else [answer["text"] for answer in answers]
    return list(texts)


def _no_squad(where: str, error: Exception) -> TextError:
    return TextError(
        f"task source {where}",
        got=f"no {error}" if isinstance(error, KeyError) else error,
        rule="must hold data, paragraphs, qas, question and answers as SQuAD's files do",
        remedy="Name a file such as train-v1.1.json, or a folder that datasets saved.",
    )


def _saved(folder: Path) -> list[dict[str, Any]]:
    """The rows of one split that the `datasets` library saved; class labels by their names."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state.get("_indices_data_files"):
            raise TextError(
                f"task source {folder}",
                got="a selection of rows, stored apart from the files",
                rule="must hold its rows in its files",
                remedy="Save it again after flatten_indices().",
            )
        names = [str(item["filename"]) for item in state["_data_files"]]
        rows = [row for name in names for row in _table(folder / name).to_pylist()]
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        features = info.get("features") or {}
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        if isinstance(error, TextError):
            raise
        raise TextError(
            f"task source {folder}",
            got=error,
            rule="must be a split that the datasets library saved",
            remedy="Save it with save_to_disk, and name the folder of a DatasetDict or of one split.",
        ) from error
    return list(_with_label_names(rows, features))


def _table(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        try:
            return pa.ipc.open_stream(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            return pa.ipc.open_file(file).read_all()


def _with_label_names(rows: Iterable[dict[str, Any]], features: dict[str, Any]) -> Iterator[dict[str, Any]]:
    labels = {
        key: feature["names"]
        for key, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
    for row in rows:
        named = {
            key: names[row[key]]
            for key, names in labels.items()
            if row.get(key) is not None and row[key] >= 0
        }
        yield row | named


def _json_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row as JSON; values that JSON lacks, such as dates, become text."""
    plain: dict[str, Any] = json.loads(json.dumps(row, default=str))
    return plain
