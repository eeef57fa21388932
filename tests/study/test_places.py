"""Folders of studies, scales of a study, and tables at URLs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
import yaml
from in_process import InProcess
from run_folders import FakeStore, write_run

from reptrain.analysis.tables import read_table
from reptrain.cli import main
from reptrain.errors import ConfigError, StudyError
from reptrain.study import arms, load_study, open_study, run_study
from reptrain.study.build import build_graph
from reptrain.study.paths import run_path
from reptrain.study.places import studies_that_ran, studies_to_run
from reptrain.study.schema import save_study

BASE: dict[str, Any] = {
    "data": {"store": "s", "unique_tokens": 4096, "window_tokens": 64},
    "model": {"vocab_size": 512, "d_model": 64, "num_heads": 2},
    "train": {"total_tokens": 8192},
}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command; returns its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("reptrain.study.preflight.open_store", lambda path, *, named_by: FakeStore())
    monkeypatch.setattr("reptrain.cli.study_run.LocalPool", FakePool)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["reptrain", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


class FakePool(InProcess):
    """Stands in for the processes."""

    def __init__(self, *arguments: object, **options: object) -> None:
        self.jobs = 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two studies, their base, and a file that is not YAML."""
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "b.yaml").write_text("base: base.yaml\nset: {optimizer.lr: 0.01}\n")
    (folder / "a.yml").write_text("base: base.yaml\nname: first\n")
    (folder / "notes.md").write_text("- no study")
    return folder


def test_studies_of_a_folder_are_taken_by_name_without_their_base(folder: Path) -> None:
    places = studies_to_run(folder, ["train.total_tokens=4096"], out=Path("there"))
    assert [(study.name, str(out)) for study, out in places] == [("first", "there/first"), ("b", "there/b")]
    assert {study.set["train.total_tokens"] for study, _ in places} == {4096}
    (folder / "c.yaml").write_text("base: base.yaml\nname: b\n")
    with pytest.raises(StudyError, match="must have different names, but got the name b 2 times"):
        studies_to_run(folder)
    for name in ("a.yml", "b.yaml", "c.yaml"):
        (folder / name).unlink()
    with pytest.raises(StudyError, match="must have a study file, but got 1 YAML files without the key base"):
        studies_to_run(folder)


def test_commands_take_a_folder_of_studies(command: Run, folder: Path, tmp_path: Path) -> None:
    code, out, _ = command("study", "plan", str(folder), "--json")
    assert code == 0 and list(json.loads(out)) == ["first", "b"]
    code, out, err = command("study", "plan", str(folder), "--budget", "12000 tokens")
    assert code == 1 and "16,384 tokens are needed" in out, err
    command("study", "run", str(folder))
    started = [(tmp_path / "runs" / name / "started.txt").read_text() for name in ("first", "b")]
    assert started == ["base\n", "base\n"]
    for where in (str(folder), str(tmp_path / "runs")):
        code, out, _ = command("study", "status", where)
        assert code == 0 and out.count("base: done") == 2 and "first\n=====" in out
    code, out, _ = command("study", "collect", str(folder), "--out", "all", "--json")
    assert code == 0 and {pq.read_table(one["runs"]).num_rows for one in json.loads(out).values()} == {1}
    # The folder of one study resumes in place.
    code, _, err = command("study", "run", str(tmp_path / "runs" / "b"))
    assert "already done" in err
    assert (tmp_path / "runs" / "b" / "started.txt").read_text() == "base\n"


def test_status_of_what_is_no_study_is_one_error(command: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        code, out, err = command("study", "status", name)
        assert (code, out) == (2, "") and "must hold a readable study.yaml" in err


def test_tables_go_to_a_url_and_are_read_from_there(command: Run, folder: Path) -> None:
    study = load_study(folder / "b.yaml")
    place = folder.parent / "out"
    save_study(study, place)
    write_run(build_graph(study, place).nodes[0].run, run_path(place, "base"), exact=True)
    code, out, err = command("study", "collect", str(place), "--out", "memory://here/tables", "--json")
    assert code == 0, err
    assert json.loads(out)["runs"] == "memory://here/tables/runs.parquet"
    assert {"runs.parquet", "evaluations.parquet"} == {
        name.rpartition("/")[2] for name in fsspec.filesystem("memory").ls("/here/tables", detail=False)
    }
    assert read_table("memory://here/tables/runs.parquet")["status"].to_pylist() == ["done"]
    for done, left in (([], False), (["--done", "memory://here/tables/runs.parquet"], True)):
        code, out, _ = command("study", "plan", str(folder / "b.yaml"), *done)
        assert (code, "all runs are done" in out) == (0, left)
        assert ("done elsewhere: 1 run of this study, among 1 finished and exact run" in out) == left
    code, out, _ = command("study", "plan", str(folder / "b.yaml"), "optimizer.lr=0.25", *done, "--json")
    bill = json.loads(out)
    assert (code, bill["finished_runs_of_other_studies"], bill["of_them_in_this_study"]) == (0, 1, 0)
    code, _, _ = command(
        "study", "run", str(folder / "b.yaml"), "--done", "memory://here/tables/runs.parquet"
    )
    assert studies_that_ran(Path("runs/b"))[0].study.name == "b" and not Path("runs/b/started.txt").exists()
    code, _, err = command("study", "run", str(folder / "b.yaml"), "--done", "memory://here/none.parquet")
    assert code == 2 and err.count("\n") == 1 and "must be readable" in err


SCALED = {
    "base": BASE,
    "set": {"optimizer.lr": 1e-3},
    "axes": {"data.unique_tokens": [1024, 2048]},
    "arms": [{"name": "small"}, {"name": "large", "set": {"model.d_model": 128}}],
    "seeds": [0, 1],
    "scales": {
        "gpu": {
            "set": {"train.total_tokens": 2**20},
            "axes": {"data.unique_tokens": ["2**16"]},
            "arms": {"large": {"model.d_model": 256}},
            "seeds": [0],
            "tune": {"optimizer.weight_decay": [0.1, 0.2, 0.3]},
        }
    },
}


@pytest.fixture
def scaled(tmp_path: Path) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(SCALED))
    return path


def test_scale_changes_settings_axes_arms_and_tuning(scaled: Path, tmp_path: Path) -> None:
    plain, study = load_study(scaled), load_study(scaled, ["seeds=[0,3]"], scale="gpu")
    assert (plain.name, plain.scale, study.name, study.scale) == ("s", None, "s-gpu", "gpu")
    assert len(arms(plain)) == 8 and plain.tune is None
    found = {arm.group: arm.config for arm in arms(study)}
    assert [(config.data.unique_tokens, config.model.d_model) for config in found.values()] == [
        (2**16, 64), (2**16, 256),
    ]  # fmt: skip
    assert study.tune is not None and study.all_seeds == [0, 3]
    save_study(study, tmp_path / "out")
    again = open_study(tmp_path / "out")
    settings = [[(arm.name, arm.config.model) for arm in arms(one)] for one in (again, study)]
    assert again.scale == "gpu" and settings[0] == settings[1]
    assert load_study(tmp_path / "out" / "study.yaml", scale="gpu") == again


@pytest.mark.parametrize(
    ("change", "scale", "message"),
    [
        ({}, "tpu", "must be one of the study's scales, but got tpu.*Scales: gpu"),
        ({"scales": {}}, "gpu", "Scales: none"),
        ({"scales": {"gpu": {"arms": {"huge": {}}}}}, "gpu", "must name an arm of the study, but got huge"),
        ({"scales": {"gpu": {"model": {}}}}, "gpu", "model"),
    ],
)
def test_wrong_scales_are_refused(scaled: Path, change: dict[str, Any], scale: str, message: str) -> None:
    scaled.write_text(yaml.safe_dump(SCALED | change))
    with pytest.raises(ConfigError, match=message):
        load_study(scaled, scale=scale)
    with pytest.raises(ConfigError, match="--scale NAME"):
        load_study(scaled, ["scale=gpu"])


def test_folder_of_another_scale_is_refused(scaled: Path, tmp_path: Path, command: Run) -> None:
    scaled.write_text(yaml.safe_dump({"base": BASE, "scales": {"same": {}}}))
    run_study(load_study(scaled, scale="same"), tmp_path / "out", executor=InProcess())
    code, _, err = command("study", "run", str(scaled), "--out", str(tmp_path / "out"))
    assert code == 2 and "scale was same, now null" in err
