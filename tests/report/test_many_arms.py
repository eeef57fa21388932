"""The parts of a report that only large studies have: tuning, means over seeds, a figure for each model."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest
from run_folders import write_run

from reptrain.report import joint, page
from reptrain.report.drawings import study_drawings
from reptrain.report.page import render
from reptrain.report.table import setting_lines
from reptrain.report.tuning_lines import tuning_drawings, tuning_lines
from reptrain.study import StudyConfig, collect
from reptrain.study.ask import read_study
from reptrain.study.build import build_graph
from reptrain.study.paths import run_path
from reptrain.study.schema import save_study
from reptrain.study.tuning import TunedGroup, tuned_by
from reptrain.study.write_tables import write_tables

BASE = {
    "data": {"store": "s", "window_tokens": 64},
    "train": {"total_tokens": 8192},
    "model": {"vocab_size": 256},
}
STUDY = StudyConfig.model_validate(
    {
        "name": "s",
        "base": BASE,
        "arms": [{"name": "small", "set": {"model.d_ff": 64}}, {"name": "large"}],
        "axes": {"data.unique_tokens": [4096, 2048, 1024, 512]},
        "seeds": [0, 1],
        "tune": {"axes": {"optimizer.lr": [1e-3, 2e-3, 4e-3]}, "seeds": [90], "extend": 0},
    }
)


def tuned(best: float) -> list[TunedGroup]:
    """The groups after tuning; in the second one the largest rate diverged."""

    def loss(config, name: str) -> float:
        if "large" in name and config.optimizer.lr == 4e-3:
            return math.inf
        return 5.0 + abs(math.log(config.optimizer.lr / best))

    return tuned_by(STUDY, loss)[1]


def test_tuning_lines_show_what_was_tried_and_chosen() -> None:
    small, large = tuning_lines(tuned(1e-3))
    assert (small.group, small.note) == ("small", "lr is at the edge of its range")
    assert dict(small.cells) == {
        "chosen": "lr 0.001", "selection loss": "5.000", "values done": "3 of 3",
        "tried": "0.001, 0.002, 0.004",
    }  # fmt: skip
    assert "1 of the values diverged" in large.note
    (waiting,) = tuning_lines(tuned_by(STUDY, lambda config, name: None)[1][:1])
    assert dict(waiting.cells)["chosen"] == "–" and dict(waiting.cells)["values done"] == "0 of 3"


def test_tuning_figure_has_a_curve_for_each_group() -> None:
    (drawing,) = tuning_drawings(tuned(2e-3), "command")
    rows = drawing.data.to_pylist()
    assert [(row["group"], row["value"]) for row in rows if row["is_chosen"]] == [
        ("small", 2e-3),
        ("large", 2e-3),
    ]
    assert len(rows) == 5 and "5.000 nats at 0.002" in drawing.svg
    assert tuning_drawings([], "command") == []


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The study, done, with tuned rates."""
    save_study(STUDY, tmp_path)
    for _ in range(2):
        for node in build_graph(STUDY, tmp_path).trainings:
            if not node.pending:
                loss = 5.0 + node.run.seed / 10 + abs(math.log(node.run.optimizer.lr / 2e-3))
                losses = {"probe": [6.0, loss - 1], "select": [6.0, loss], "report": [6.0, loss]}
                write_run(node.run, run_path(tmp_path, node.name), losses=losses, exact=True)
    return tmp_path


def test_setting_lines_are_means_over_seeds(out: Path) -> None:
    lines = setting_lines(collect(STUDY, out))
    assert [line.label for line in lines][:2] == [
        "small, 2 epochs of 4,096 tokens",
        "small, 4 epochs of 2,048 tokens",
    ]
    assert len(lines) == 8

    assert dict(lines[0].cells) == {
        "seeds": "2", "selected held-out": "5.050", "deviation": "0.071", "at epoch": "2",
        "final held-out": "5.050", "final training": "4.050", "gap": "1.000", "exact": "2 of 2",
    }  # fmt: skip


def test_page_of_many_runs_shows_means_tuning_and_a_figure_for_each_model(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_MOST_LINES", 10)
    text = render(STUDY, collect(STUDY, out), out)
    assert text.index(">5.050</td>") < text.index("All 16 runs")
    assert 'id="tuning"' in text and "lr 0.002" in text
    for number, model in ((1, "small"), (2, "large")):
        assert f'<figure id="figure-loss-against-tokens-{number}">' in text
        assert f"Held-out loss against tokens seen: {model}" in text


def test_figures_of_several_studies_leave_tuning_runs_out(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[pa.Table] = []

    def see(runs: pa.Table, evaluations: pa.Table, names: dict[str, str]) -> list[object]:
        shown.extend((runs, evaluations))
        return list(study_drawings(runs, evaluations, names))

    monkeypatch.setattr(joint, "study_drawings", see)
    write_tables(STUDY, out)
    joint.write_joint_report([read_study(out)], out / "studies.html")
    assert [{*table["role"].to_pylist()} for table in shown] == [{"main"}, {"main"}]
