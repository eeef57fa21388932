"""Which rows of a task are used for what, and what is said of wrong ones."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from small_tasks import ROWS, MakeTask, write_rows

from reptrain.config.task import TaskLimits
from reptrain.errors import ConfigError, ReptrainError, TextError
from reptrain.tasks.files import load_task, read_report, read_rows

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("REPTRAIN_DATA") or ROOT.parent / "shared" / "data") / "tasks"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no folder {DATA}; REPTRAIN_DATA names another")


def test_rows_that_choose_share_no_group_with_those_trained_on(make_task: MakeTask) -> None:
    task = load_task(make_task(group="page"))
    rows = read_rows(task, TaskLimits(select_examples=5))
    train, select = ({row.group for row in part} for part in (rows.train, rows.select))
    assert not train & select
    # Whole pages of two.
    assert len(rows.select) == 6 and len(rows.train) == len(ROWS) - 6
    assert sorted(row.input for row in rows.train + rows.select) == sorted(str(row["input"]) for row in ROWS)
    assert rows == read_rows(task, TaskLimits(select_examples=5))


@pytest.mark.parametrize(("rows", "chosen"), [(2, 1), (72, 14), (1279, 255), (1281, 256), (2000, 256)])
def test_by_default_few_rows_leave_most_to_train_on(make_task: MakeTask, rows: int, chosen: int) -> None:
    folder = make_task()
    write_rows(folder / "train.jsonl", [{"input": f"row {n}", "target": "yes"} for n in range(rows)])
    found = read_rows(load_task(folder), TaskLimits())
    assert (len(found.select), len(found.train)) == (chosen, rows - chosen)


def test_a_folder_in_a_tasks_file_is_beside_it_and_in_an_override_in_the_working_directory(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_task()
    (folder.parent / "tasks").mkdir(exist_ok=True)
    file = folder.parent / "tasks" / "mine.yaml"
    file.write_text(f"kind: qa\ndata: ../{folder.name}\n")
    assert len(read_rows(load_task(file), TaskLimits()).report) > 0
    monkeypatch.chdir(folder.parent)
    assert load_task(file, [f"data={folder.name}"]).data == folder.name
    assert len(read_rows(load_task(file, [f"data={folder.name}"]), TaskLimits()).report) > 0


def test_fewer_rows_are_the_first_of_more(make_task: MakeTask) -> None:
    task = load_task(make_task())
    some = read_rows(task, TaskLimits(select_examples=5, train_examples=4, report_examples=3))
    more = read_rows(task, TaskLimits(select_examples=5, train_examples=9))
    assert some.train == more.train[:4] and some.report == more.report[:3] and some.select == more.select
    assert [row.input for row in more.train] != [str(row["input"]) for row in ROWS[:9]]
    assert read_report(task, TaskLimits(report_examples=3)) == some.report


def test_templates_answers_and_lines(make_task: MakeTask) -> None:
    folder = make_task(
        input="ask {q} of {c}", target="{a}", answers="all", train="t.jsonl.gz", report="t.jsonl.gz"
    )
    rows = [
        {"q": "who", "c": "a text\u2028of two lines\u0085or three", "a": "me", "all": ["me", "I"]},
        {"q": "what", "c": "{q}", "a": "it"},
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "t.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    found = sorted(read_report(load_task(folder), TaskLimits()))
    assert [(row.input, row.target, row.answers) for row in found] == [
        ("ask what of {q}", "it", ("it",)),
        ("ask who of a text\u2028of two lines\u0085or three", "me", ("me", "I")),
    ]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no key": ({"input": "a"}, "no 'target'"),
    "an empty target": ({"input": "a", "target": " "}, "an empty target"),
    "one answer": ({"input": "a", "target": "b", "answers": "b"}, "got a text under 'answers'"),
    "null": (
        {"input": None, "target": "b"},
        "must hold a text or a number there, but got null under 'input'",
    ),
    "a list": ({"input": "a", "target": ["b"]}, "got a list under 'target'"),
    "an object": ({"input": "a", "target": {"text": "b"}}, "got an object under 'target'"),
    "a truth value": ({"input": "a", "target": True}, "got true or false under 'target'"),
    "NaN": ({"input": "a", "target": float("nan")}, "finite numbers only, but got NaN"),
    "a null answer": ({"input": "a", "target": "b", "answers": [None]}, "got null under 'answers'"),
    "aliases": (
        {"input": "a", "target": "b", "answers": {"value": "b", "aliases": ["c"]}},
        "got an object under 'answers'",
    ),
    "no span": ({"input": "a", "target": "b", "answers": {"text": []}}, "got no answer|got an object"),
    "no answer": ({"input": "a", "target": "b", "answers": []}, "got no answer under 'answers'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rows_are_named(case: str, make_task: MakeTask) -> None:
    row, words = WRONG[case]
    folder = make_task()
    write_rows(folder / "validation.jsonl", [ROWS[0], row])
    with pytest.raises(TextError, match=rf"validation.jsonl, line 2: .*{words}"):
        read_report(load_task(folder), TaskLimits())


def test_numbers_are_texts_as_written(make_task: MakeTask) -> None:
    folder = make_task(report="n.jsonl")
    (folder / "n.jsonl").write_text(
        '{"input": 1.10, "target": 12345678901234567890.50, "answers": [-0, 1e5]}\n'
    )
    (row,) = read_report(load_task(folder), TaskLimits())
    assert row == ("1.10", "12345678901234567890.50", ("-0", "1e5"), None)
    assert type(row.input) is str


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["a", "b"], "answer_start": [3, 9]},
        [{"text": "a", "answer_start": 3}, {"text": "b", "answer_start": 9}],
        [{"text": "a"}, "b"],
    ],
)
def test_answers_in_the_forms_of_squad(answers: object, make_task: MakeTask) -> None:
    folder = make_task(report="s.jsonl")
    write_rows(folder / "s.jsonl", [{"input": "q", "target": "a", "answers": answers}])
    (row,) = read_report(load_task(folder), TaskLimits())
    assert row.answers == ("a", "b")


def test_templates_name_keys_with_spaces_and_keys_of_nested_objects(make_task: MakeTask) -> None:
    """Such a key must not stay in the input as it is written in the template."""
    folder = make_task(input="{Question Text} {about.place-name}", target="{a.b}")
    rows = [{"Question Text": "q", "about": {"place-name": "here"}, "a.b": "t", "a": {"b": "u"}}]
    write_rows(folder / "validation.jsonl", rows)
    (row,) = read_report(load_task(folder), TaskLimits())
    assert (row.input, row.target) == ("q here", "t")
    write_rows(folder / "validation.jsonl", [rows[0] | {"about": {"place": "here"}}])
    with pytest.raises(TextError, match=r"no 'about\.place-name' but Question Text, a, a\.b, about"):
        read_report(load_task(folder), TaskLimits())


@pytest.mark.parametrize("template", ["question", "{}", "{ }", '{"a": 1}'])
def test_a_template_without_a_key_is_refused(make_task: MakeTask, template: str) -> None:
    with pytest.raises(ConfigError, match="input: must name a key of the rows in braces"):
        load_task(make_task(input=template))


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff\n"])
def test_files_without_a_row_are_refused(make_task: MakeTask, content: str) -> None:
    folder = make_task()
    (folder / "validation.jsonl").write_text(content)
    with pytest.raises(TextError, match=r"must have rows in its files, but got no row in validation\.jsonl"):
        read_rows(load_task(folder), TaskLimits(select_examples=5))


def test_files_joined_by_cat_are_read(make_task: MakeTask) -> None:
    """Each file that an editor of Windows wrote has a byte order mark at its begin."""
    folder = make_task()
    (folder / "validation.jsonl").write_bytes(b'\xef\xbb\xbf{"input": "q", "target": "a"}\r\n' * 2)
    assert [row[:2] for row in read_report(load_task(folder), TaskLimits())] == [("q", "a")] * 2


def test_files_of_windows_are_read(make_task: MakeTask) -> None:
    folder = make_task(report="w.jsonl*")
    content = b'\xef\xbb\xbf{"input": "q", "target": "a"}\r\n'
    (folder / "w.jsonl").write_bytes(content)
    (folder / "w.jsonl.gz").write_bytes(gzip.compress(content))
    assert [row[:2] for row in read_report(load_task(folder), TaskLimits())] == [("q", "a")] * 2
    for line, words in (
        (b'{"input": "q",\t"target": "a\tb"}', "got a raw tab in a string at column 28"),
        (b'{"input": "q", "target": "\\ud800"}', "half of a surrogate pair under 'target'"),
    ):
        (folder / "w.jsonl").write_bytes(line)
        with pytest.raises(TextError, match=rf"w\.jsonl, line 1: .*{words}"):
            read_report(load_task(folder), TaskLimits())


def test_wrong_tasks_are_refused(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task()
    with pytest.raises(TextError, match=r"no file .*absent"):
        read_report(load_task(folder, ["report=absent.jsonl"]), TaskLimits())
    for overrides, words in (
        (["kind=classification"], "needs labels"),
        (["labels=[a, b]"], "labels are for kind classification"),
        (["labls=[a, b]"], "Did you mean labels"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_task(folder, overrides)
    labeled = load_task(folder, ["kind=classification", "labels=[list, modul]"])
    with pytest.raises(TextError, match="the target 'module'"):
        read_report(labeled, TaskLimits())
    with pytest.raises(ConfigError, match="must leave rows for training"):
        read_rows(load_task(folder), TaskLimits(select_examples=20))
    with pytest.raises(ConfigError, match="must be at most 15"):
        read_rows(load_task(folder), TaskLimits(select_examples=5, train_examples=16))
    with pytest.raises(ReptrainError, match="must be a readable file"):
        load_task(tmp_path)


@needs_data
@pytest.mark.parametrize(("name", "rows"), [("squad", 10_570), ("e2e_nlg", 630)])
def test_shipped_tasks_read_the_real_files(name: str, rows: int) -> None:
    task = load_task(ROOT / "configs" / "tasks" / f"{name}.yaml", [f"data={DATA / name}"])
    found = read_report(task, TaskLimits())
    assert len(found) == rows
    assert all(row.input and row.target in row.answers for row in found)
