"""The results of the commands in `then`, as columns of the runs that they took: ``ENTRY.SCORE``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from reptrain.files import read_small
from reptrain.reading import decode, parse_object
from reptrain.study.graph import Graph, Kind, Node
from reptrain.study.paths import result_path
from reptrain.tables.columns import SCORE_COLUMNS
from reptrain.tables.read_run import Row

Named = Iterable[tuple[str, Any]]
"""Names of scores, without the entry, with their values."""


def node_output(node: Node, out: Path) -> Any:
    """What the command of a node printed with `--json`; None if it is not done or its result is damaged."""
    try:
        record = parse_object(decode(read_small(result_path(out, node.name))))
    except (OSError, ValueError):
        return None
    return record.get("output") if record.get("fingerprint") == node.fingerprint else None


def result_columns(graph: Graph, out: Path) -> dict[str, Row]:
    """The columns of each training run by its name; a command over several runs fills them in all of these.

    Args:
        graph: The study's graph.
        out: Its folder.
    """
    found: dict[str, Row] = {node.name: {} for node in graph.trainings}
    for node in graph.nodes:
        if node.kind not in _SCORES:
            continue
        parts = _by_model(node, node_output(node, out))
        for name, rows in zip(node.inputs, parts, strict=True):
            found[_training(graph, name)] |= _columns(node, rows)
    return found


def _training(graph: Graph, name: str) -> str:
    """The run that a node's model was made from."""
    node = graph.by_name[name]
    return name if node.config is not None else _training(graph, node.inputs[0])


def _by_model(node: Node, output: Any) -> list[list[Row]]:
    """The rows of each input of a node, in their order; those of an ensemble are of all its members."""
    rows = [row for row in (output if isinstance(output, list) else [output]) if isinstance(row, dict)]
    number = len(node.inputs)
    if number == 1 or node.kind == "ensemble":
        return [rows] * number
    models = [*dict.fromkeys(str(row.get("run")) for row in rows)]
    if len(models) != number:
        return [[]] * number
    return [[row for row in rows if str(row.get("run")) == model] for model in models]


def _columns(node: Node, rows: list[Row]) -> Row:
    try:
        named = dict(_SCORES[node.kind](rows))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return {}
    return {f"{node.entry}.{name}": value for name, value in named.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _evaluated(rows: list[Row]) -> Iterator[tuple[str, Any]]:
    """``SET.SCORE``; under several objectives ``SET.OBJECTIVE.SCORE``."""
    several = len({row["objective"] for row in rows}) > 1
    for row in rows:
        parts = [row["set"], *([row["objective"]] if several else [])]
        for name, value in row.items():
            yield ".".join([*parts, SCORE_COLUMNS.get(name, name)]), value


def _averaged(rows: list[Row]) -> Iterator[tuple[str, Any]]:
    """The scores of the ensemble, which follow those of its members."""
    last = rows[-1]["run"] if rows else None
    return _evaluated([row for row in rows if row["run"] == last])


def _finetuned(rows: list[Row]) -> Iterator[tuple[str, Any]]:
    """``best.SCORE`` and ``last.SCORE``: means over the seeds of the fine-tuning."""
    for which in ("best", "last"):
        scores = [seed[which]["report"] for seed in rows[0]["seeds"]]
        for name in ("nats_per_token", "nats_per_answer"):
            yield f"{which}.{name}", fmean(score[name] for score in scores)
        for name in scores[0]["metrics"]:
            yield f"{which}.{name}", fmean(score["metrics"][name] for score in scores)


def _on_task(rows: list[Row]) -> Named:
    return rows[0].items()


def _by_lm_eval(rows: list[Row]) -> Iterator[tuple[str, Any]]:
    """``TASK.METRIC``."""
    return ((f"{row['task']}.{row['metric']}", row["value"]) for row in rows)


def _memorized(rows: list[Row]) -> Iterator[tuple[str, Any]]:
    """``SET.share``: the share of all windows, whatever their number of exposures."""
    for name, of_set in groupby(sorted(rows, key=lambda row: str(row["set"])), lambda row: row["set"]):
        counts = [(row["reproduced"], row["windows"]) for row in of_set]
        reproduced, windows = (sum(column) for column in zip(*counts, strict=True))
        yield f"{name}.share", reproduced / windows


_SCORES: Mapping[Kind, Callable[[list[Row]], Named]] = {
    "evaluate": _evaluated,
    "ensemble": _averaged,
    "finetune": _finetuned,
    "score-task": _on_task,
    "lm-eval": _by_lm_eval,
    "memorization": _memorized,
}
SCORED: frozenset[Kind] = frozenset(_SCORES)
"""The commands that have scores."""
