"""A small trained run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from reptrain.config import RunConfig


@pytest.fixture(scope="module")
def trained(
    tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Path of a run with a few training steps under an objective."""
    from reptrain.training.loop import train

    folder = tmp_path_factory.mktemp("trained")

    def run(objective: str) -> Path:
        path = folder / objective
        if not path.exists():
            train(
                tiny("train.total_tokens=800", "evaluate.every_fraction=1", f"objective.name={objective}"),
                path,
            )
        return path

    return run
