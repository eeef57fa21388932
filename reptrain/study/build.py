"""From a study to its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from reptrain.study.arm import Arm
from reptrain.study.chains import training_fingerprints, with_clusters_of_parents
from reptrain.study.graph import Graph, Node, in_order, store_fingerprints
from reptrain.study.prefixes import with_branches
from reptrain.study.questions import check_questions
from reptrain.study.schema import StudyConfig
from reptrain.study.then import then_nodes
from reptrain.study.tuning import Trial, TunedGroup, tuned_arms, untuned_arms


def build_graph(study: StudyConfig, out: Path) -> Graph:
    """The nodes of a study, inputs first.

    Args:
        study: The study.
        out: Its folder, for the settings that were tuned. An arm whose settings are still to be tuned needs
            the tuning runs, and is marked as pending.

    Raises:
        StudyError: If an arm's configuration is wrong, or the nodes form no graph.
    """
    arms, groups = tuned_arms(study, out)
    check_questions(study, arms, {name: group.name for group in groups for name in group.arms})
    trials = [trial for group in groups for trial in group.trials]
    stores = store_fingerprints([*(arm.config for arm in arms), *(trial.config for trial in trials)])
    fingerprints = training_fingerprints([*arms, *trials], stores)
    pending = untuned_arms(arms, groups)
    tuning = [
        _trial_node(trial, fingerprints, pending=trial.parent in pending)
        for group in groups
        for trial in group.trials
    ]
    runs = [_arm_node(arm, groups, fingerprints, pending=arm.name in pending) for arm in arms]
    declared = {arm.name: arm for arm in arms if arm.look == 1}
    commands = then_nodes(study, declared, [node for node in runs if node.name in declared])
    trainings = with_branches([*tuning, *runs], branch=study.share_prefixes)
    trainings = with_clusters_of_parents(trainings)
    return in_order([*trainings, *_after_pending(commands, runs)], study=study.name)


def _arm_node(
    arm: Arm, groups: Sequence[TunedGroup], fingerprints: Mapping[str, str], *, pending: bool
) -> Node:
    tuning = next((group for group in groups if arm.group in group.arms and group.best is None), None)
    trials = [trial.name for trial in tuning.trials] if tuning is not None else []
    return Node(
        name=arm.name,
        kind="train",
        role="arm",
        arm=arm.group,
        seed=arm.config.seed,
        values=arm.values,
        inputs=(*trials, *([arm.parent] if arm.parent else [])),
        config=arm.config,
        parent=arm.parent,
        cluster=arm.name,
        fingerprint=fingerprints[arm.name],
        pending=pending,
    )


def _trial_node(trial: Trial, fingerprints: Mapping[str, str], *, pending: bool) -> Node:
    return Node(
        name=trial.name,
        kind="train",
        role="tune",
        arm=trial.name.rpartition(".seed-")[0],
        seed=trial.config.seed,
        values=trial.values,
        inputs=(trial.parent,) if trial.parent else (),
        config=trial.config,
        parent=trial.parent,
        cluster=trial.name,
        fingerprint=fingerprints[trial.name],
        pending=pending,
    )


def _after_pending(commands: Sequence[Node], runs: Sequence[Node]) -> list[Node]:
    """Commands on pending runs are pending too."""
    pending = {node.name for node in runs if node.pending}
    marked = []
    for node in commands:
        if pending & {*node.inputs}:
            pending.add(node.name)
            node = replace(node, pending=True)
        marked.append(node)
    return marked
