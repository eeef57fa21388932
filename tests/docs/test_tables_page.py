"""docs/guides/tables.md, block by block: every query and program runs on a study's tables."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import duckdb
import pytest
from run_folders import LOSSES, write_run
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.study import StudyConfig, arms
from reptrain.study.paths import run_path
from reptrain.study.schema import save_study

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "tables.md").read_text()
STUDY = StudyConfig(
    name="study",
    base={
        "data": {"store": "s", "window_tokens": 64},
        "train": {"total_tokens": 8192},
        "model": {"vocab_size": 512},
    },
    axes={"data.unique_tokens": [4096, 1024]},
    seeds=[0, 1],
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished study in runs/study, as the page assumes."""
    out = tmp_path / "runs" / "study"
    save_study(STUDY, out)
    for arm in arms(STUDY):
        more = 0.5 if arm.values["data.unique_tokens"] == 1024 else 0.0
        losses = {name: [nats + more for nats in values] for name, values in LOSSES.items()}
        write_run(arm.config, run_path(out, arm.name), losses=losses, exact=True)
    monkeypatch.chdir(tmp_path)
    return out


def test_the_page_does_what_it_shows(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in "".join(blocks("sh")).splitlines():
        ended = CliRunner().invoke(app, shlex.split(line)[1:])
        assert ended.exit_code == 0, f"{line}: {ended.output} {ended.exception!r}"
    assert ended.stdout.count("\n") == 5
    by_subset, course, costs = (duckdb.sql(query).fetchall() for query in blocks("sql"))
    assert by_subset == [(1024, 2, 6.7, 5.4, True), (4096, 2, 6.2, 5.4, True)]
    assert len(course) == 6 and course[0][2:] == pytest.approx((8.6, 8.5))
    assert [row[0] for row in costs] == ["unique_tokens-4096", "unique_tokens-1024"]
    assert costs[0][1] > 0
    for program in blocks("python"):
        exec(compile(program, "tables.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"mean +0\.5", printed)
    assert "loss_report_best_nats double Loss on the report split" in printed
