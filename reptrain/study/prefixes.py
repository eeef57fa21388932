"""Shared prefixes: runs that are equal up to some step train these steps once, and branch from one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reptrain.errors import ReptrainError
from reptrain.plan.marks import evaluation_steps
from reptrain.plan.shared_steps import RunSteps, shared_steps
from reptrain.store.manifest import MANIFEST, read_manifest
from reptrain.store.remote import local_folder
from reptrain.study.graph import Branch, Node

# Sharing less than this part of a run is not worth waiting for the other run.
_LEAST_SHARE = 0.05


@dataclass
class _Run:
    """A training with its place in the tree of prefixes."""

    node: Node
    steps: RunSteps
    parent: _Run | None = None
    shared: int = 0

    @property
    def root(self) -> _Run:
        return self if self.parent is None else self.parent.root


def with_branches(nodes: Sequence[Node], *, branch: bool) -> list[Node]:
    """The trainings with their branches and clusters.

    Each run branches from the earlier one with which it shares most steps. So every step of the tree of
    prefixes is trained once.

    Args:
        nodes: The trainings, in the order of the study. Pending ones share nothing yet.
        branch: Whether runs branch; else they only get their clusters.
    """
    runs = _tree([node for node in nodes if not node.pending])
    made = {run.node.name: replace(run.node, cluster=run.root.node.name) for run in runs}
    if branch:
        made = {run.node.name: _with_branch(made[run.node.name], run) for run in runs}
        made |= _with_marks(runs, made)
    return [made.get(node.name, node) for node in nodes]


def _tree(nodes: Sequence[Node]) -> list[_Run]:
    """The runs, parents first. Longer runs come first: a shorter one may be a part of them."""
    stores: dict[str, int | None] = {}
    resolved = ((node, _steps(node, stores)) for node in nodes)
    runs = [_Run(node, steps) for node, steps in resolved if steps is not None]
    runs.sort(key=lambda run: -run.steps.steps.num_steps)
    kinds: dict[tuple[str, ...], list[_Run]] = {}
    for run in runs:
        key = (run.steps.kind, *(source.store for source in run.node.run.sources.values()))
        earlier = kinds.setdefault(key, [])
        for other in earlier:
            shared = shared_steps(run.steps, other.steps)
            if shared > run.shared:
                run.parent, run.shared = other, shared
        if run.shared < _LEAST_SHARE * run.steps.steps.num_steps:
            run.parent, run.shared = None, 0
        earlier.append(run)
    return runs


def _steps(node: Node, stores: dict[str, int | None]) -> RunSteps | None:
    """The steps of a training; None if it cannot share any, or its store is needed and not there."""
    unique: dict[str, int] = {}
    for name, source in node.run.sources.items():
        tokens = source.unique_tokens or _train_tokens(source.store, stores)
        if tokens is None:
            return None
        unique[name] = tokens
    try:
        steps = RunSteps(node.run, unique)
    except ReptrainError:
        # The preflight check reports it.
        return None
    return steps if steps.can_share else None


def _train_tokens(store: str, known: dict[str, int | None]) -> int | None:
    if store not in known:
        path = local_folder(store)
        known[store] = read_manifest(path).splits["train"].tokens if (path / MANIFEST).exists() else None
    return known[store]


def _with_branch(node: Node, run: _Run) -> Node:
    if run.parent is None:
        return node
    return replace(node, branch=Branch(run.parent.node.name, run.shared))


def _with_marks(runs: Sequence[_Run], made: Mapping[str, Node]) -> dict[str, Node]:
    """The nodes with the steps at which they must save, and evaluate, for those that branch from them."""
    saves: dict[str, set[int]] = {}
    evaluations: dict[str, set[int]] = {}
    for run in reversed(runs):
        node = made[run.node.name]
        if node.branch is None:
            continue
        parent, step = node.branch.parent, node.branch.step
        wanted = evaluation_steps(node.run.evaluate, run.steps.steps.num_steps)
        wanted |= evaluations.get(node.name, set())
        saves.setdefault(parent, set()).add(step)
        evaluations.setdefault(parent, set()).update(one for one in wanted if one <= step)
    steps = {run.node.name: run.steps.steps.num_steps for run in runs}
    return {
        name: _marked(made[name], saves[name], evaluations[name], num_steps=steps[name]) for name in saves
    }


def _marked(node: Node, saves: set[int], evaluations: set[int], *, num_steps: int) -> Node:
    config = node.run
    more = evaluations - evaluation_steps(config.evaluate, num_steps)
    evaluate = config.evaluate.model_copy(update={"at_steps": sorted({*config.evaluate.at_steps, *more})})
    saving = config.checkpoint.model_copy(update={"at_steps": sorted({*config.checkpoint.at_steps, *saves})})
    return replace(node, config=config.model_copy(update={"evaluate": evaluate, "checkpoint": saving}))
