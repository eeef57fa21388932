"""Lines of JSON in sources, tasks and prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reptrain.config.task import TaskConfig, TaskLimits
from reptrain.errors import ReptrainError, TextError
from reptrain.files import read_small
from reptrain.generation import read_prompts
from reptrain.reading import parse_json
from reptrain.runs.parent import Parent
from reptrain.runs.records import read_record
from reptrain.tasks.files import read_rows
from reptrain.tokenization import tokenize

LINES = {
    "brackets": "[" * 50_000,
    "braces": '{"text":' * 50_000,
    "digits": '{"text": "x", "more": ' + "9" * 5_000 + "}",
    "list": "[1]",
    "number": "5",
    "nothing": "null",
    "half": '{"text": "x',
    "two": '{"text": "x"} {"text": "y"}',
    "quotes": "{'text': 'x'}",
}


@pytest.mark.parametrize("name", LINES)
def test_a_source_with_such_a_line_is_refused(tmp_path: Path, name: str) -> None:
    source = tmp_path / "source.jsonl"
    source.write_text(json.dumps({"text": "a sound line"}) + "\n" + LINES[name] + "\n")
    with pytest.raises(TextError) as refused:
        tokenize([source], tmp_path / "store", vocab_size=300)
    assert len(str(refused.value)) <= 500 and not (tmp_path / "store" / "manifest.json").exists()


# A task takes a number as it is written, however long.
@pytest.mark.parametrize("name", [name for name in LINES if name != "digits"])
def test_a_task_with_such_a_line_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "train.jsonl").write_text(LINES[name] + "\n")
    with pytest.raises(TextError, match=r"train\.jsonl, line 1: must (be|hold)") as refused:
        read_rows(task(tmp_path), TaskLimits())
    assert len(str(refused.value)) <= 500


@pytest.mark.parametrize("pattern", ["/etc/*", "", "no such file", "x" * 5_000])
def test_a_task_whose_files_are_elsewhere_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(ReptrainError) as refused:
        read_rows(task(tmp_path, train=(pattern,)), TaskLimits())
    assert len(str(refused.value)) <= 500


@pytest.mark.parametrize("name", LINES)
def test_prompts_with_such_a_line_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(LINES[name] + "\n")
    with pytest.raises(TextError, match=r"prompts\.jsonl:1: must (be|hold)") as refused:
        read_prompts(tmp_path / "prompts.jsonl")
    assert len(str(refused.value)) <= 500


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff", b"9" * 5_000, b"", b"{]"])
def test_parse_json_raises_one_type_of_error(text: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_read_small_ends_at_its_limit(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="larger than 1000 bytes"):
        read_small(Path("/dev/zero"), 1000)
    (tmp_path / "file").write_bytes(b"x" * 1000)
    assert read_small(tmp_path / "file", 1000) == b"x" * 1000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "{}",
        "null",
        '{"path": 5}',
        '{"path": "a\\u0000", "step": 1, "weights": "x"}',
        '{"path": "\\ud800"}',
    ],
)
def test_read_record_refuses_what_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "parent.json").write_text(text)
    with pytest.raises(ReptrainError, match="must be a complete record") as refused:
        read_record(Parent, tmp_path / "parent.json", remedy="Restore it.")
    assert len(str(refused.value)) <= 500


def task(folder: Path, **changed: object) -> TaskConfig:
    settings = {
        "name": "task",
        "kind": "generation",
        "data": str(folder),
        "input": "{text}",
        "target": "{text}",
    }
    return TaskConfig.model_validate(settings | changed)
