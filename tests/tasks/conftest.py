"""A small task, and small trained models of every way to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_tasks import READINGS, ROWS, MakeConfig, MakeTask, write_rows

from reptrain.config.load import dump_yaml
from reptrain.training.loop import train


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """See there."""


@pytest.fixture(scope="session")
def trained(tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model that has seen little, by how it reads."""
    folder = tmp_path_factory.mktemp("trained")

    def of(reading: str) -> Path:
        if not (folder / reading).exists():
            train(
                tiny("train.total_tokens=800", "evaluate.every_fraction=1", *READINGS[reading]),
                folder / reading,
            )
        return folder / reading

    return of


@pytest.fixture
def make_task(tmp_path: Path) -> MakeTask:
    """Writes the folder of a task; takes settings of its file."""

    def make(**settings: Any) -> Path:
        folder = tmp_path / "task"
        folder.mkdir()
        write_rows(folder / "train.jsonl", ROWS)
        write_rows(folder / "validation.jsonl", ROWS[::3])
        (folder / "task.yaml").write_text(dump_yaml({"name": "small", "kind": "qa"} | settings))
        return folder

    return make
