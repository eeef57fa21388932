"""A score is defined once, in `SCORES`, and reaches records, TensorBoard, studies and reports from there."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import write_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from reptrain.evaluation.score import Score
from reptrain.report.table import arm_lines
from reptrain.runs.folder import RunFolder
from reptrain.runs.metrics import ValidRecord
from reptrain.runs.scores import SCORES, ScoreType, compute_scores
from reptrain.study import StudyConfig, arms, collect
from reptrain.study.paths import run_path
from reptrain.training.recorder import Recorder

STUDY = StudyConfig(
    name="s",
    base={"data": {"store": "s", "window_tokens": 64}, "train": {"total_tokens": 8192}},
    axes={"data.unique_tokens": [4096, 1024]},
)
SUMS = Score(
    nats=8 * math.log(2), loss_tokens=4, text_bytes=16.0, correct=1, tokens=4, raw_correct=1, raw_tokens=2
)


@pytest.fixture
def perplexity(monkeypatch: pytest.MonkeyPatch) -> None:
    score = ScoreType(
        "perplexity", "1", "lower", "perplexity", lambda sums: math.exp(sums.nats / sums.loss_tokens)
    )
    monkeypatch.setitem(SCORES, "perplexity", score)


def test_scores_follow_from_sums() -> None:
    scores = compute_scores(SUMS)
    assert list(scores) == [
        "nats", "bits_per_byte", "accuracy", "scored_tokens", "raw_accuracy", "raw_tokens",
    ]  # fmt: skip
    assert scores["nats"] == pytest.approx(2 * math.log(2)) and scores["bits_per_byte"] == 0.5
    assert (scores["accuracy"], scores["raw_accuracy"]) == (0.25, 0.5)
    assert (scores["scored_tokens"], scores["raw_tokens"]) == (4, 2)


def test_scores_of_experts_are_those_of_sparse_models() -> None:
    assert "dead_experts" not in compute_scores(SUMS) and "expert_peak" not in compute_scores(SUMS)
    sparse = replace(SUMS, expert_counts=((4, 0, 0, 4), (1, 5, 1, 1)))
    scores = compute_scores(sparse)
    assert (scores["dead_experts"], scores["expert_peak"]) == (2, 2.5)


def test_new_score_reaches_record_tensorboard_study_and_report(perplexity: None, tmp_path: Path) -> None:
    first, second = arms(STUDY)
    for arm in (first, second):
        write_run(arm.config, run_path(tmp_path, arm.name))
    # Only the first arm's run evaluates once more, at a lower loss.
    folder = RunFolder.open(run_path(tmp_path, first.name))
    recorder = Recorder(
        folder, folder.plan.mixture_plan(), None, num_steps=4, tokens_before=8192, display=None,
        say=lambda text: None,
    )  # fmt: skip
    with recorder:
        for name in ("select", "report"):
            recorder.score(3, 2.0, name, SUMS)
    line = json.loads(folder.metrics.path.read_text().splitlines()[-1])
    assert line["perplexity"] == pytest.approx(4.0) and line["nats"] == pytest.approx(2 * math.log(2))
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    plotted = set(events.Tags()["scalars"])
    assert {"select/nats", "select/accuracy", "report/perplexity"} <= plotted
    assert "select/raw_tokens" not in plotted
    rows = collect(STUDY, tmp_path)
    assert rows[0].best_scores is not None and rows[0].best_scores["perplexity"] == pytest.approx(4.0)
    # The records of the second arm are older than the score, and are read all the same.
    assert rows[1].best_scores is not None and "perplexity" not in rows[1].best_scores
    cells = [dict(line.cells)["perplexity"] for line in arm_lines(rows)]
    assert cells == ["4.000", "–"]
    # No arm has experts.
    assert "dead experts" not in dict(arm_lines(rows)[0].cells)


def test_a_straggler_is_noted_once(tmp_path: Path) -> None:
    (arm, *_) = arms(STUDY)
    write_run(arm.config, run_path(tmp_path, arm.name))
    folder, said = RunFolder.open(run_path(tmp_path, arm.name)), list[str]()
    recorder = Recorder(
        folder, folder.plan.mixture_plan(), None, num_steps=4, tokens_before=8192, display=None,
        say=said.append,
    )  # fmt: skip
    with recorder:
        for slow in ([], [1], [1], []):
            recorder.rank_times([10.0, 31.0, None], slow)
    text = "rank 1 is slow: 31 ms a step in its forward passes, others 10"
    assert said == [f"WARNING: {text}"]
    assert [(event.event, event.detail) for event in folder.events.records()][-1] == ("straggler", text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speed": 1.0}, "speed is no score"),
        ({"accuracy": None}, "accuracy is missing"),
        ({"raw_tokens": 1.5}, "raw_tokens must be a whole number"),
        ({"scored_tokens": -1}, "scored_tokens must be a whole number"),
    ],
)
def test_records_with_wrong_scores_are_refused(changes: dict[str, float | None], message: str) -> None:
    place = {"step": 1, "tokens": 64, "epoch": 0.5, "set": "select"}
    scores = {**compute_scores(SUMS), **changes}
    given = {key: value for key, value in scores.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        ValidRecord.model_validate({**place, **given})


def test_scores_that_are_not_finite_survive_the_file() -> None:
    scores = {**compute_scores(SUMS), "nats": math.nan, "bits_per_byte": math.inf}
    record = ValidRecord(step=1, tokens=64, epoch=0.5, set="select", **scores)
    read = ValidRecord.model_validate_json(record.model_dump_json())
    assert math.isnan(read.nats) and read.scores["bits_per_byte"] == math.inf
