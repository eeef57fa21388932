"""The scores of a study's `evaluate` and `ensemble` nodes, as rows of the evaluation table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reptrain.runs.scores import SCORES
from reptrain.study.graph import Graph, Node
from reptrain.study.node_results import node_output
from reptrain.tables.columns import SCORE_COLUMNS
from reptrain.tables.read_run import Row

_SCORE = ("evaluate", "ensemble")
_OF_RUN = ("study", "arm", "seed", "cluster", "role", "numerics_version")


def node_evaluations(graph: Graph, out: Path, runs: Mapping[str, Row], *, study: str) -> list[Row]:
    """The rows of all nodes that score models and are done; a damaged result has none.

    Args:
        graph: The study's graph.
        out: Its folder.
        runs: Rows of the run table by the name of the run.
        study: Name of the study.
    """
    return [
        _row(node, score, runs, study)
        for node in graph.nodes
        if node.kind in _SCORE
        for score in _scores(node_output(node, out))
    ]


def _scores(output: Any) -> list[dict[str, Any]]:
    """The output of `reptrain evaluate --json`."""
    if not isinstance(output, list):
        return []
    return [score for score in output if isinstance(score, dict) and {"run", "set"} <= score.keys()]


def _row(node: Node, score: Mapping[str, Any], runs: Mapping[str, Row], study: str) -> Row:
    names = [Path(path).name for path in str(score["run"]).split(" + ")]
    members = [runs.get(name, {}) for name in names]
    first = members[0]
    # Of an ensemble, what its members share.
    shared = {key: first.get(key) for key in _OF_RUN if all(m.get(key) == first.get(key) for m in members)}
    split, _, source = str(score["set"]).partition("/")
    at_end = len(names) == 1 and score.get("step") == first.get("steps")
    return {
        **shared,
        "study": study,
        "run": " + ".join(names),
        "node": node.name,
        "split": split,
        "source": source or None,
        "weights": "own",
        "objective": score.get("objective"),
        "step": score.get("step"),
        "consumed_tokens": first.get("consumed_tokens") if at_end else None,
        "epoch": first.get("epochs") if at_end else None,
        **{column: score[name] for name, column in SCORE_COLUMNS.items() if name in score and name in SCORES},
    }
