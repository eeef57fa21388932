"""Chains of trainings: arms that start from the weights of another arm's runs (`init_from: ARM`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from reptrain.config import RunConfig
from reptrain.config.continuation import fixed_difference
from reptrain.errors import StudyError
from reptrain.study.arm import Arm
from reptrain.study.graph import Node, train_fingerprint
from reptrain.study.paths import run_path

INIT_FROM = "init_from"


def with_parents(study: str, arms: Sequence[Arm], out: Path | None) -> list[Arm]:
    """The arms with their parents: the run of the arm that `init_from` names, at the same axes and seed.

    Any other value of `init_from` is the path of a model.

    Args:
        study: Name of the study.
        arms: All arms.
        out: The study's folder; None: `init_from` stays as it is written.

    Raises:
        StudyError: If an arm starts from no run or several, from itself, or from another model.
    """
    if not any(arm.config.init_from for arm in arms):
        return [*arms]
    found = [_with_parent(study, arm, arms, out) for arm in arms]
    by_name = {arm.name: arm for arm in found}
    for arm in found:
        _refuse_circle(study, arm, by_name)
    for arm in found:
        if arm.parent is not None:
            _refuse_another_model(study, arm, by_name[arm.parent])
    return found


def _with_parent(study: str, arm: Arm, arms: Sequence[Arm], out: Path | None) -> Arm:
    named = arm.config.init_from
    candidates = [other for other in arms if named and named in (other.point.entry.name, other.group)]
    if not candidates:
        _refuse_unknown(study, arm, arms)
        return arm
    parent = _run_of(study, arm, [other for other in candidates if _has_same_axes(other, arm)])
    if out is None:
        return replace(arm, parent=parent.name)
    path = str(run_path(out, parent.name).absolute())
    return replace(arm, parent=parent.name, config=arm.config.model_copy(update={INIT_FROM: path}))


def _has_same_axes(one: Arm, other: Arm) -> bool:
    axes, others = one.point.axes, other.point.axes
    return all(axes[key] == others[key] for key in axes.keys() & others.keys() - {INIT_FROM})


def _run_of(study: str, arm: Arm, candidates: Sequence[Arm]) -> Arm:
    """The run with the arm's seed, or the only one."""
    groups = [*dict.fromkeys(other.group for other in candidates)]
    if len(groups) != 1:
        raise StudyError(
            f"study {study}, arm {arm.group}: init_from {arm.config.init_from}",
            got=", ".join(groups) or "no arm with the same values of the axes",
            rule="must select one arm",
            remedy="Use the full name of an arm, or give both arms the same axes.",
        )
    if len(candidates) == 1:
        return candidates[0]
    for other in candidates:
        if other.config.seed == arm.config.seed:
            return other
    seeds = ", ".join(str(other.config.seed) for other in candidates)
    raise StudyError(
        f"study {study}, arm {arm.group}: init_from {arm.config.init_from}",
        got=f"seed {arm.config.seed}, and the seeds {seeds} of {groups[0]}",
        rule="must select a run with the same seed, or an arm with one run",
        remedy="List the seed in the seeds of both arms.",
    )


def _refuse_unknown(study: str, arm: Arm, arms: Sequence[Arm]) -> None:
    """Refuse a name that is neither an arm nor a path."""
    named = arm.config.init_from
    if named is None or len(Path(named).parts) > 1 or Path(named).exists():
        return
    names = [*dict.fromkeys(other.point.entry.name or other.group for other in arms)]
    raise StudyError(
        f"study {study}, arm {arm.group}: init_from",
        got=repr(named),
        rule="must be an arm of the study, or the path of a model",
        remedy=f"The arms are {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}.",
    )


def _refuse_circle(study: str, arm: Arm, by_name: Mapping[str, Arm]) -> None:
    above = [arm.name]
    while (parent := by_name[above[-1]].parent) is not None:
        if parent in above:
            raise StudyError(
                f"study {study}, init_from",
                got=" <- ".join([*above[above.index(parent) :], parent]),
                rule="must not be circular",
                remedy="Change init_from of one of them.",
            )
        above.append(parent)


def _refuse_another_model(study: str, arm: Arm, parent: Arm) -> None:
    differing = fixed_difference(parent.config.model, arm.config.model)
    if differing is not None:
        key, there, here = differing
        raise StudyError(
            f"study {study}, arm {arm.group}: model.{key}",
            got=here,
            rule=f"must be {there}, as in {parent.group}, the parent of the arm",
            remedy="Set it to that value, or leave init_from out.",
        )


def with_seeds_of_parents(
    arms: Iterable[Arm], more_seeds: Mapping[str, Sequence[int]]
) -> dict[str, list[int]]:
    """Seeds that second looks have added, with those that the parents of their arms need.

    Args:
        arms: The arms with their declared seeds.
        more_seeds: Added seeds by the name of the arm without its seed.
    """
    by_name = {arm.name: arm for arm in arms}
    declared: dict[str, set[int]] = {}
    for arm in by_name.values():
        declared.setdefault(arm.group, set()).add(arm.config.seed)
    parents = {arm.group: by_name[arm.parent].group for arm in by_name.values() if arm.parent is not None}
    found = {group: {*seeds} for group, seeds in more_seeds.items()}
    for group in more_seeds:
        child = group
        # An arm with other seeds starts from the only run of its parent.
        while (parent := parents.get(child)) is not None and declared[child] <= declared[parent]:
            found.setdefault(parent, set()).update(more_seeds[group])
            child = parent
    return {group: sorted(seeds) for group, seeds in found.items()}


class StudyTraining(Protocol):
    """A training that may start from another: an arm, or a tuning run."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def config(self) -> RunConfig:
        """Its configuration."""

    @property
    def parent(self) -> str | None:
        """The run that it starts from."""


def training_fingerprints(trainings: Iterable[StudyTraining], stores: Mapping[str, str]) -> dict[str, str]:
    """The fingerprints of trainings by name. That of a child contains its parent's and not its path.

    Args:
        trainings: The trainings, with all parents.
        stores: Fingerprints of their stores by path (see `store_fingerprints`).
    """
    by_name = {training.name: training for training in trainings}
    found: dict[str, str] = {}

    def fingerprint(name: str) -> str:
        if name not in found:
            training = by_name[name]
            config = training.config
            if training.parent is not None:
                config = config.model_copy(update={INIT_FROM: fingerprint(training.parent)})
            found[name] = train_fingerprint(config, stores)
        return found[name]

    return {name: fingerprint(name) for name in by_name}


def with_clusters_of_parents(nodes: Sequence[Node]) -> list[Node]:
    """The trainings with the clusters of their parents: runs that start from one run are one unit."""
    by_name = {node.name: node for node in nodes}

    def cluster(node: Node) -> str:
        return node.cluster if node.parent is None else cluster(by_name[node.parent])

    return [replace(node, cluster=cluster(node)) for node in nodes]
