"""The graph of a study: its nodes are commands, its edges are inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal

from reptrain.config import RunConfig, config_fingerprint
from reptrain.config.json_digest import fingerprint
from reptrain.config.numerics import NUMERICS_VERSION
from reptrain.errors import StudyError
from reptrain.store.manifest import MANIFEST, read_manifest
from reptrain.store.remote import local_folder

Kind = Literal[
    "train", "finetune", "evaluate", "memorization", "score-task", "lm-eval", "ensemble", "export", "routers"
]
Role = Literal["arm", "tune", "then"]


@dataclass(frozen=True)
class Branch:
    """The run that a training shares its first steps with."""

    parent: str
    """Node of that run."""
    step: int
    """Number of shared steps."""


@dataclass(frozen=True)
class Node:
    """One command of a study.

    Attributes:
        name: Unique within the study, and a file name.
        kind: The command.
        role: ``arm``: a run that the study asks for; ``tune``: a run that only chooses settings; ``then``: a
            command on other nodes.
        arm: Name of the arm, without the seed.
        seed: Seed of the run; None for a node over several runs.
        values: The value of each varied key, by dotted key.
        inputs: Nodes that must be done first.
        config: Configuration of a training; None for other kinds.
        branch: The run that a training branches from.
        parent: The run, also among the inputs, whose last checkpoint holds a training's initial weights.
        cluster: Runs with one cluster share a prefix or a parent, and count as one unit in statistics.
        entry: Name of its entry in `then`; empty for a training.
        settings: Options of the command; empty for a training.
        fingerprint: Identifies the node's results: its settings, those of its inputs, and the numerics
            version.
        pending: Whether its settings are still to be tuned.
    """

    name: str
    kind: Kind
    role: Role
    arm: str
    seed: int | None
    values: Mapping[str, Any]
    inputs: tuple[str, ...] = ()
    config: RunConfig | None = None
    branch: Branch | None = None
    parent: str | None = None
    cluster: str = ""
    entry: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    pending: bool = False

    @property
    def run(self) -> RunConfig:
        """Configuration of a training."""
        assert self.config is not None
        return self.config


@dataclass(frozen=True)
class Graph:
    """All nodes of a study, inputs first."""

    nodes: tuple[Node, ...]

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    @property
    def trainings(self) -> tuple[Node, ...]:
        """The nodes that train."""
        return tuple(node for node in self.nodes if node.config is not None)

    def levels(self) -> list[list[Node]]:
        """The nodes in groups: each needs only nodes of earlier groups."""
        level: dict[str, int] = {}
        for node in self.nodes:
            before = [*node.inputs, *([node.branch.parent] if node.branch else [])]
            level[node.name] = 1 + max((level[name] for name in before), default=-1)
        return [
            [node for node in self.nodes if level[node.name] == number]
            for number in range(1 + max(level.values(), default=-1))
        ]


def in_order(nodes: Iterable[Node], *, study: str) -> Graph:
    """The graph of some nodes, with inputs before the nodes that need them.

    Raises:
        StudyError: If two nodes have one name, an input is missing, or nodes need each other in a circle.
    """
    by_name: dict[str, Node] = {}
    for node in nodes:
        if node.name in by_name:
            raise StudyError(
                f"study {study}",
                got=f"{node.name} twice",
                rule="must have unique node names",
                remedy="Rename an arm or an entry of then.",
            )
        by_name[node.name] = node
    before = {
        node.name: [*node.inputs, *([node.branch.parent] if node.branch else [])] for node in by_name.values()
    }
    for name, inputs in before.items():
        for needed in inputs:
            if needed not in by_name:
                raise StudyError(
                    f"study {study}, node {name}",
                    got=needed,
                    rule="must have nodes of the study as its inputs",
                    remedy=f"The nodes are {', '.join([*by_name][:10])}.",
                )
    try:
        TopologicalSorter(before).prepare()
    except CycleError as error:
        raise StudyError(
            f"study {study}",
            got=" <- ".join(error.args[1]),
            rule="must not be circular",
            remedy="Change `of` or `from` of one of them.",
        ) from error
    order: dict[str, Node] = {}
    for name in by_name:
        _add(name, before, by_name, order)
    return Graph(tuple(order.values()))


def _add(
    name: str, before: Mapping[str, Sequence[str]], by_name: Mapping[str, Node], order: dict[str, Node]
) -> None:
    """Add a node after its inputs; the order of the study is kept otherwise."""
    if name not in order:
        for needed in before[name]:
            _add(needed, before, by_name, order)
        order[name] = by_name[name]


def store_fingerprints(configs: Iterable[RunConfig]) -> dict[str, str]:
    """The fingerprint of every store of some runs by its path; stores that do not exist are left out."""
    paths = {source.store for config in configs for source in config.sources.values()}
    return {
        path: read_manifest(local_folder(path)).fingerprint
        for path in paths
        if (local_folder(path) / MANIFEST).exists()
    }


def train_fingerprint(config: RunConfig, stores: Mapping[str, str]) -> str:
    """The fingerprint of a training and its evaluations.

    Args:
        config: The run.
        stores: Fingerprints of its stores by path (see `store_fingerprints`).
    """
    return fingerprint(
        {
            "kind": "train",
            "numerics_version": NUMERICS_VERSION,
            "config": config_fingerprint(config),
            "evaluate": config.evaluate.model_dump(mode="json", exclude={"at_steps"}),
            "stores": [stores.get(source.store) for source in config.sources.values()],
        }
    )


def command_fingerprint(kind: Kind, settings: Mapping[str, Any], inputs: Sequence[str]) -> str:
    """The fingerprint of another node.

    Args:
        kind: The command.
        settings: Its options.
        inputs: Fingerprints of its inputs.
    """
    return fingerprint(
        {
            "kind": kind,
            "numerics_version": NUMERICS_VERSION,
            "settings": dict(settings),
            "inputs": [*inputs],
        }
    )
