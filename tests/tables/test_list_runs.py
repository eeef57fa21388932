"""Finding, filtering and sorting runs, on disk and on a file system of fsspec."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from run_folders import write_run
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.config import RunConfig
from reptrain.errors import ConfigError, ReptrainError
from reptrain.tables.list_runs import list_runs


def config(unique: int) -> RunConfig:
    return RunConfig.model_validate(
        {"data": {"store": "s", "unique_tokens": unique}, "train": {"total_tokens": 8192}}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three runs at different depths: done, failed, damaged; and a copy of a plan inside checkpoints."""
    write_run(config(1024), tmp_path / "a", exact=True, losses={"select": [8.0, 5.0]})
    write_run(config(512), tmp_path / "study" / "runs" / "b", state="failed", reason="out of memory")
    broken = write_run(config(2048), tmp_path / "study" / "runs" / "c").path
    (broken / "plan.json").write_text("{")
    copy = tmp_path / "a" / "checkpoints" / "step-1"
    copy.mkdir()
    (copy / "ledger.jsonl").touch()
    return tmp_path


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    """The same runs in fsspec's file system in memory."""
    files = fsspec.filesystem("memory")
    files.put(str(folder), "/bucket/runs", recursive=True)
    yield "memory://bucket/runs"
    files.rm("/bucket", recursive=True)


def names(readings: object) -> list[str]:
    return [reading.row["run"].rpartition("/")[2] for reading in readings]  # type: ignore[attr-defined]


def test_runs_at_any_depth_are_found_once(folder: Path) -> None:
    readings = list_runs([str(folder), str(folder / "a")])
    assert names(readings) == ["a", "b", "c"]
    assert [reading.row["status"] for reading in readings] == ["done", "failed", "damaged"]


def test_runs_at_a_url_have_the_rows_of_the_disk(folder: Path, url: str) -> None:
    there, here = list_runs([url]), list_runs([str(folder)])
    assert [r.row["run"] for r in there] == [f"{url}/{p}" for p in ("a", "study/runs/b", "study/runs/c")]
    for far, near in zip(there[:2], here[:2], strict=True):
        assert far.row | {"run": ""} == near.row | {"run": ""}
        assert [e | {"run": ""} for e in far.evaluations] == [e | {"run": ""} for e in near.evaluations]
    assert there[2].row["status"] == "damaged"


def test_one_run_at_a_url_is_listed(url: str) -> None:
    assert [r.row["run"] for r in list_runs([f"{url}/a/"])] == [f"{url}/a"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["status=done"], "a"),
        (["status!=done"], "bc"),
        (["epochs>=16"], "b"),
        (["epochs < 16"], "a"),
        (["data.unique_tokens=2**10"], "a"),
        (["set.data.unique_tokens=1k"], ""),
        (["unique_tokens<=512", "status=failed"], "b"),
        (["audit_verdict=exact"], "a"),
        (["reason=null"], "a"),
        (["loss_report_best_nats!=null"], "b"),
        (["model.tie_embeddings=false"], "ab"),
    ],
)
def test_where(folder: Path, where: list[str], expected: str) -> None:
    assert "".join(names(list_runs([str(folder)], where=where))) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [("epochs", "abc"), ("-epochs", "bac"), ("data.unique_tokens", "bac"), ("-run", "cba")],
)
def test_sort_puts_unknown_values_last(folder: Path, key: str, expected: str) -> None:
    assert "".join(names(list_runs([str(folder)], sort=key))) == expected


@pytest.mark.parametrize("text", ["status", "=done", "loss=3", "epochs>many", "", "a.b ~ 3"])
def test_a_wrong_condition_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="--where"):
        list_runs([str(folder)], where=[text])


def test_a_wrong_sort_key_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--sort"):
        list_runs([str(folder)], sort="loss")


@pytest.mark.parametrize(
    "address", ["/nowhere/at/all", "memory://nowhere", "memory://bucket/runs/a/plan.json", "nonsense://a/b"]
)
def test_a_missing_folder_is_one_clear_error(url: str, address: str) -> None:
    with pytest.raises(ReptrainError, match=r"must (be|have)"):
        list_runs([address])


def test_command_prints_text_csv_and_json(folder: Path) -> None:
    def printed(*options: str) -> str:
        ended = CliRunner().invoke(app, ["runs", str(folder), *options])
        assert ended.exit_code == 0, ended.output
        return ended.stdout

    heading, first, *rest = printed().splitlines()
    assert heading.split()[:2] == ["run", "status"] and "exact" in first
    assert any("out of memory" in line for line in rest)
    rows = json.loads(printed("--json", "--sort", "-epochs"))
    assert [row["status"] for row in rows] == ["failed", "done", "damaged"]
    from_csv = [*csv.DictReader(io.StringIO(printed("--csv")))]
    assert [row["unique_tokens"] for row in from_csv] == ["1024", "512", ""]
    assert list(from_csv[0]) == list(rows[0])
    assert printed("--where", "status=running").strip() == "no runs"


def test_command_refuses_two_formats(folder: Path) -> None:
    ended = CliRunner().invoke(app, ["runs", str(folder), "--csv", "--json"])
    assert isinstance(ended.exception, ConfigError)
