"""Which checkpoints a study keeps once no node needs them any more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from reptrain.study.graph import Graph, Node
from reptrain.study.paths import run_path

Rule = Literal["all", "last", "none"]


def release_checkpoints(graph: Graph, out: Path, rule: Rule, is_done: Callable[[Node], bool]) -> None:
    """Remove checkpoints of finished runs that no unfinished node needs.

    Args:
        graph: The study's nodes.
        out: Its folder.
        rule: What stays: all, the last checkpoint of each run, or none.
        is_done: Whether a node is done.
    """
    if rule == "all":
        return
    done = {node.name for node in graph.nodes if is_done(node)}
    needed = {
        name
        for node in graph.nodes
        if node.name not in done
        for name in (*node.inputs, *([node.branch.parent] if node.branch else []))
    }
    for node in graph.trainings:
        if node.name in done - needed:
            _prune(run_path(out, node.name) / "checkpoints", keep_last=rule == "last")


def _prune(checkpoints: Path, *, keep_last: bool) -> None:
    latest = checkpoints / "latest"
    try:
        kept = latest.read_text().strip() if keep_last else ""
    except FileNotFoundError:
        return
    if not keep_last:
        # Before the folders: a pointer to a missing checkpoint would look like damage.
        latest.unlink(missing_ok=True)
    for folder in checkpoints.glob("step-*"):
        if folder.name != kept:
            shutil.rmtree(folder)
