"""The studies of configs/paper: each can be planned, with the unique tokens and epochs of the paper."""

from __future__ import annotations

from pathlib import Path

import pytest

from reptrain.study.build import build_graph
from reptrain.study.point import epochs
from reptrain.study.schema import load_study

PAPER = Path(__file__).parents[2] / "configs" / "paper"
STUDIES = sorted(path for path in PAPER.glob("*.yaml") if path.name != "base.yaml")


@pytest.mark.parametrize("path", STUDIES, ids=[path.stem for path in STUDIES])
def test_runs_have_whole_epochs_and_the_models_of_the_paper(path: Path, tmp_path: Path) -> None:
    nodes = build_graph(load_study(path), tmp_path).trainings
    assert nodes
    for node in nodes:
        assert node.run.model.family == "t5"
        repeats = epochs(node.run)
        # UL2 has different numbers of inputs and targets per window.
        if repeats is not None and node.run.objective.name == "span_corruption":
            assert repeats in (1, 64, 256), node.name
