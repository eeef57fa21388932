"""Which checkpoints are removed, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reptrain.study import StudyConfig
from reptrain.study.build import build_graph
from reptrain.study.paths import run_path
from reptrain.study.retention import release_checkpoints

BASE: dict[str, Any] = {
    "data": {"store": "s", "unique_tokens": 4096, "window_tokens": 64},
    "train": {"total_tokens": 16384, "batch_windows": 8},
    "schedule": {"name": "constant", "warmup_fraction": 0},
}


@pytest.mark.parametrize(
    ("rule", "done", "kept"),
    [
        ("all", {"long", "short", "x.long", "x.short"}, {"long": [8, 24, 32], "short": [8, 24, 32]}),
        ("last", {"long", "short", "x.long", "x.short"}, {"long": [32], "short": [32]}),
        ("none", {"long", "short", "x.long", "x.short"}, {"long": [], "short": []}),
        # `short` still has to branch, or a command to read a run; an unfinished run needs its own.
        ("none", {"long", "x.long"}, {"long": [8, 24, 32], "short": [8, 24, 32]}),
        ("none", {"long", "short", "x.short"}, {"long": [8, 24, 32], "short": []}),
    ],
)
def test_checkpoints_stay_while_an_unfinished_node_needs_them(
    tmp_path: Path, rule: Any, done: set[str], kept: dict[str, list[int]]
) -> None:
    arms = [{"name": "long"}, {"name": "short", "set": {"train.total_tokens": 4096}}]
    then = [{"name": "x", "do": "evaluate"}]
    graph = build_graph(StudyConfig(name="s", base=BASE, arms=arms, then=then), tmp_path)
    for name in kept:
        folder = run_path(tmp_path, name) / "checkpoints"
        for step in (8, 24, 32):
            (folder / f"step-{step}").mkdir(parents=True)
        (folder / "latest").write_text("step-32\n")
    for _ in range(2):  # It is called whenever a node ends.
        release_checkpoints(graph, tmp_path, rule, lambda node: node.name in done)
    for name, steps in kept.items():
        folder = run_path(tmp_path, name) / "checkpoints"
        assert sorted(int(path.name[5:]) for path in folder.glob("step-*")) == steps
        assert (folder / "latest").exists() == bool(steps)
