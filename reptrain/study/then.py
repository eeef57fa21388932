"""The commands on trained runs: the section `then` of a study."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reptrain.errors import StudyError
from reptrain.study.arm import Arm
from reptrain.study.graph import Kind, Node, command_fingerprint
from reptrain.study.grid import arm_name
from reptrain.study.paths import product_path, run_path
from reptrain.study.point import MEMBER
from reptrain.study.schema import StudyConfig
from reptrain.study.sections import Then

_REPTRAIN = (sys.executable, "-m", "reptrain")
_HAS_MODEL: tuple[Kind, ...] = ("finetune", "export")


def then_nodes(study: StudyConfig, arms: Mapping[str, Arm], trainings: Sequence[Node]) -> list[Node]:
    """The nodes of the section `then`.

    Args:
        study: The study.
        arms: Its arms by the name of their run.
        trainings: The nodes of these runs.

    Raises:
        StudyError: If an entry takes another that does not exist or has no models, or a task is missing.
    """
    builder = _Builder(study, arms, trainings)
    return [node for entry in study.then for node in builder.nodes(entry.name)]


class _Builder:
    """Makes the nodes of each entry, after those of the entry that it takes."""

    def __init__(self, study: StudyConfig, arms: Mapping[str, Arm], trainings: Sequence[Node]) -> None:
        self._study, self._trainings = study, trainings
        self._entries = {entry.name: entry for entry in study.then}
        self._arms = dict(arms)
        self._made: dict[str, list[Node]] = {}

    def nodes(self, name: str, above: tuple[str, ...] = ()) -> list[Node]:
        """The nodes of an entry.

        Args:
            name: Its name.
            above: The entries that are being made and need it.
        """
        if name in self._made:
            return self._made[name]
        entry = self._entries[name]
        if name in above:
            raise StudyError(
                f"study {self._study.name}, then",
                got=" of ".join([*above, name]),
                rule="must not be circular",
                remedy="Change `of` of one of them.",
            )
        models: Sequence[Node] = self._trainings
        if entry.of is not None:
            _check_of(self._study, entry, self._entries)
            models = self.nodes(entry.of, (*above, name))
        groups: dict[str, list[Node]] = {}
        for model in models:
            if self._arms[model.name].point.satisfies(entry.where):
                groups.setdefault(self._group(entry, model), []).append(model)
        if not groups:
            raise StudyError(
                f"study {self._study.name}, then {name}",
                got="no run",
                rule="must select at least one run",
                remedy="Change its `where`.",
            )
        made = [_node(entry, label, inputs) for label, inputs in groups.items()]
        self._arms |= {node.name: self._arms[node.inputs[0]] for node in made}
        self._made[name] = made
        return made

    def _group(self, entry: Then, model: Node) -> str:
        """The name of the group of models that one command takes together."""
        if entry.unit == "run":
            return model.name
        if entry.unit == "seeds":
            return model.arm
        arm = self._arms[model.name]
        shared = {key: value for key, value in arm.shown.items() if key not in ("arm", MEMBER)}
        return arm_name(shared, entry=arm.point.entry.name, seed=arm.config.seed)


def _check_of(study: StudyConfig, entry: Then, entries: Mapping[str, Then]) -> None:
    other = entries.get(entry.of or "")
    if other is None or other.do not in _HAS_MODEL:
        got = f"{entry.of!r}" if other is None else f"{entry.of!r}, which does {other.do}"
        raise StudyError(
            f"study {study.name}, then {entry.name}: of",
            got=got,
            rule="must name another entry that makes models (finetune, export)",
            remedy=f"The entries are {', '.join(entries)}.",
        )


def _node(entry: Then, label: str, inputs: Sequence[Node]) -> Node:
    settings: dict[str, Any] = {"options": dict(entry.options), "overrides": dict(entry.overrides)}
    if entry.task is not None:
        settings |= {"task": entry.task, "task_sha256": _task_hash(entry), "seeds": entry.runs}
    first = inputs[0]
    node = Node(
        name=f"{entry.name}.{label}",
        kind=entry.do,
        role="then",
        arm=first.arm,
        seed=first.seed if all(one.seed == first.seed for one in inputs) else None,
        values=first.values,
        inputs=tuple(one.name for one in inputs),
        cluster=first.cluster,
        entry=entry.name,
        settings=settings,
    )
    # Paths of files do not count, their content does.
    counted = {key: value for key, value in settings.items() if key != "task"}
    fingerprints = [one.fingerprint for one in inputs]
    return replace(node, fingerprint=command_fingerprint(entry.do, counted, fingerprints))


def _task_hash(entry: Then) -> str:
    path = Path(entry.task or "")
    file = path / "task.yaml" if path.is_dir() else path
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise StudyError(
            f"then {entry.name}: task",
            got=f"{file} ({error.strerror})",
            rule="must be a task's folder or file",
            remedy="Its path is relative to the study file.",
        ) from error


def then_command(node: Node, inputs: Sequence[Node], out: Path) -> list[str]:
    """The command of a node that is no training.

    Args:
        node: The node.
        inputs: Its inputs.
        out: The study's folder.
    """
    models = [str(_model(one, out)) for one in inputs]
    overrides = [f"{key}={_text(value)}" for key, value in node.settings["overrides"].items()]
    product, task = str(product_path(out, node.name)), str(node.settings.get("task"))
    seeds = ["--seeds", str(node.settings.get("seeds"))]
    match node.kind:
        case "finetune":
            words = ["finetune", *models, task, "--out", product, *overrides, *seeds]
        case "export":
            words = ["export", *models, product]
        case "score-task":
            words = ["score-task", *models, "--task", task]
            words += [word for text in overrides for word in ("--set", text)]
        case "ensemble":
            words = ["evaluate", *models, "--ensemble"]
        case _:
            words = [node.kind, *models]
    return [*_REPTRAIN, *words, *_options(node.settings["options"]), "--json"]


def _model(node: Node, out: Path) -> Path:
    """The folder of a node's model; of several fine-tuned seeds, the first."""
    if node.config is not None:
        return run_path(out, node.name)
    folder = product_path(out, node.name)
    return folder / f"seed-{node.settings['overrides'].get('seed', 0)}" if node.kind == "finetune" else folder


def _options(options: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words += [f"--{name}"] if value else []
        else:
            for item in value if isinstance(value, list) else [value]:
                words += [f"--{name}", str(item)]
    return words


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
