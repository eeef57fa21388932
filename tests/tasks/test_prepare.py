"""Tasks made of SQuAD's JSON and of folders that `datasets` saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.config.task import TaskLimits
from reptrain.errors import ConfigError, TextError
from reptrain.tasks.files import load_task, read_rows
from reptrain.tasks.prepare import prepare_rows, prepare_squad

datasets = pytest.importorskip("datasets")
SETTINGS = Path(__file__).parents[2] / "configs" / "tasks" / "squad.yaml"


def questions(articles: int, title: str) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{title}-{number}-{place}",
            "title": f"{title} {number}",
            "context": f"Mill {number} stands in Ely. It was built in {1800 + number}.",
            "question": "Where does it stand?" if place else "When was it built?",
            "answers": {
                "text": ["Ely", "in Ely", "Ely"] if place else [str(1800 + number)],
                "answer_start": [1],
            },
        }
        for number in range(articles)
        for place in range(2)
    ]


def as_squad(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The same questions in the form of train-v1.1.json."""
    paragraphs: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        answers = [{"text": text, "answer_start": 1} for text in row["answers"]["text"]]
        qa = {"id": row["id"], "question": row["question"], "answers": answers}
        paragraphs.setdefault((row["title"], row["context"]), []).append(qa)
    data = [
        {"title": title, "paragraphs": [{"context": context, "qas": qas}]}
        for (title, context), qas in paragraphs.items()
    ]
    return {"version": "1.1", "data": data}


TRAIN, DEV = questions(6, "Mills"), questions(3, "Towers")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "json").mkdir()
    for name, rows in (("train-v1.1.json", TRAIN), ("dev-v1.1.json", DEV)):
        (tmp_path / "json" / name).write_text(json.dumps(as_squad(rows)))
    both = {"train": datasets.Dataset.from_list(TRAIN), "validation": datasets.Dataset.from_list(DEV)}
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "saved"))
    return tmp_path


def test_json_and_saved_folder_make_the_same_task(sources: Path) -> None:
    done = prepare_squad(sources / "json", sources / "a")
    assert done == (str(sources / "a"), 12, 6, 0)
    prepare_squad(sources / "saved", sources / "b")
    parts = sources / "json" / "train-v1.1.json", sources / "json" / "dev-v1.1.json"
    prepare_squad(parts[0], sources / "c", validation=parts[1])
    files = [{path.name: path.read_bytes() for path in (sources / name).iterdir()} for name in "abc"]
    assert files[0] == files[1] == files[2]
    rows = read_rows(load_task(sources / "a"), TaskLimits())
    assert len(rows.train) + len(rows.select) == 12 and len(rows.report) == 6
    assert {row.answers for row in rows.report} == {("Ely", "in Ely"), ("1800",), ("1801",), ("1802",)}
    assert all(row.input.startswith("question: ") and row.group for row in rows.train)
    # The settings that come with reptrain read the same folder.
    assert read_rows(load_task(SETTINGS, [f"data={sources / 'a'}"]), TaskLimits()) == rows


def test_questions_without_an_answer_are_left_out_and_counted(sources: Path) -> None:
    rows = [*TRAIN, {**TRAIN[0], "id": "x", "answers": {"text": [], "answer_start": []}}]
    (sources / "json" / "train-v1.1.json").write_text(json.dumps(as_squad(rows)))
    done = prepare_squad(sources / "json", sources / "a")
    assert (done.train, done.unanswerable) == (12, 1) and "1 without an answer left out" in done.text()


def test_rows_keep_their_columns_and_class_labels_get_their_names(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"review": datasets.Value("string"), "label": label})
    split = datasets.Dataset.from_list(
        [{"review": f"text {n}", "label": n % 2} for n in range(20)], features=features
    )
    for name in ("train", "test"):
        split.save_to_disk(str(tmp_path / "in" / name))
    words = ["--kind", "classification", "--input", "{review}", "--target", "{label}", "--labels", "bad,good"]
    command = [
        "tasks",
        "prepare",
        "rows",
        str(tmp_path / "in"),
        "--out",
        str(tmp_path / "out"),
        *words,
        "--json",
    ]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["train"] == 20
    rows = read_rows(load_task(tmp_path / "out"), TaskLimits())
    assert {row.target for row in rows.train} == {"bad", "good"} and len(rows.report) == 20


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "must be a JSON file"),
        ('{"data": [{"title": "a"}]}', "no 'paragraphs'"),
        ("[]", "as SQuAD's files do"),
        (json.dumps(as_squad([{**TRAIN[0], "context": 3}])), "no text"),
        ("[" * 100_000, "must be a JSON file"),
    ],
)
def test_what_is_no_squad_is_refused(sources: Path, content: str, words: str) -> None:
    (sources / "json" / "dev-v1.1.json").write_text(content)
    with pytest.raises(TextError, match=words):
        prepare_squad(sources / "json", sources / "a")
    assert not (sources / "a").exists()


def test_missing_splits_used_folders_and_selections_are_refused(sources: Path) -> None:
    with pytest.raises(ConfigError, match="--validation"):
        prepare_squad(sources / "json" / "train-v1.1.json", sources / "a")
    (sources / "json" / "dev-v1.1.json").unlink()
    with pytest.raises(ConfigError, match="no validation or dev"):
        prepare_squad(sources / "json", sources / "a")
    with pytest.raises(ConfigError, match="must be new or empty"):
        prepare_squad(sources / "saved", sources / "json")
    with pytest.raises(ConfigError, match="kind"):
        prepare_rows(sources / "saved", sources / "a", {})
    state = sources / "saved" / "train" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"_indices_data_files": [{"filename": "i"}]}))
    with pytest.raises(TextError, match="flatten_indices"):
        prepare_squad(sources / "saved", sources / "a")
    state.unlink()
    with pytest.raises(TextError, match="must be a split that the datasets library saved"):
        prepare_squad(sources / "saved", sources / "a")
    assert not (sources / "a").exists()
