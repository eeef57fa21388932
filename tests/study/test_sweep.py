"""Sweeps with Optuna, with a small script in place of training."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from run_folders import FakeStore

from reptrain.errors import StudyError
from reptrain.study import StudyConfig
from reptrain.study.local_pool import LocalPool
from reptrain.study.sweep import Space, parse_space, run_sweep

TESTS = Path(__file__).parents[1]
TRAINER = [sys.executable, str(Path(__file__).with_name("sweep_trainer.py"))]
STUDY = StudyConfig(
    name="s",
    base={
        "data": {"store": "s", "unique_tokens": 4096, "window_tokens": 64},
        "train": {"total_tokens": 8192},
    },
    seeds=[0, 1],
)


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptrain.study.preflight.open_store", lambda path, *, named_by: FakeStore())
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


def test_run_sweep_tries_a_grid_and_resumes(tmp_path: Path) -> None:
    grid = [Space("optimizer.lr", (0.002, 1.0))]
    first = run_sweep(STUDY, tmp_path, grid, num_trials=1, launch=TRAINER, executor=LocalPool(1, poll_s=0.05))
    assert len(first.trials) + first.num_failed == 1
    done = run_sweep(STUDY, tmp_path, grid, num_trials=9, launch=TRAINER, executor=LocalPool(1, poll_s=0.05))
    assert [values["optimizer.lr"] for values, _ in done.trials] == [0.002]
    # A mean over both seeds; the diverged rate counts as failed.
    assert done.trials[0][1] == pytest.approx(5.005)
    assert done.num_failed == 1


def test_run_sweep_refuses_a_study_that_varies_settings(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="axes or arms"):
        run_sweep(
            STUDY.model_copy(update={"axes": {"seed": [1]}}),
            tmp_path,
            [Space("optimizer.lr", (1.0,))],
            num_trials=1,
        )


def test_parse_space_reads_ranges_and_lists() -> None:
    assert parse_space("optimizer.lr=1e-4..1e-2") == Space("optimizer.lr", low=1e-4, high=1e-2)
    assert parse_space("model.dropout.residual=0,0.1") == Space("model.dropout.residual", (0.0, 0.1))
    for wrong in ("optimizer.lr", "optimizer.lr=", "optimizer.lr=2..1", "optimizer.lr=a,b"):
        with pytest.raises(StudyError, match="--over"):
            parse_space(wrong)
