"""From a study to its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from reptrain.study.graph import Graph, Node, in_order, store_fingerprints, train_fingerprint
from reptrain.study.grid import Arm
from reptrain.study.prefixes import with_branches
from reptrain.study.questions import check_questions
from reptrain.study.schema import StudyConfig
from reptrain.study.then import then_nodes
from reptrain.study.tuning import TunedGroup, tuned_arms


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
    check_questions(study, arms)
    trials = [trial for group in groups for trial in group.trials]
    stores = store_fingerprints([*(arm.config for arm in arms), *(trial.config for trial in trials)])
    tuning = [node for group in groups for node in _trial_nodes(group, stores)]
    runs = [_arm_node(arm, groups, stores) for arm in arms]
    declared = {arm.name: arm for arm in arms if arm.look == 1}
    commands = then_nodes(study, declared, [node for node in runs if node.name in declared])
    trainings = with_branches([*tuning, *runs], branch=study.share_prefixes)
    return in_order([*trainings, *_after_pending(commands, runs)], study=study.name)


def _arm_node(arm: Arm, groups: Sequence[TunedGroup], stores: Mapping[str, str]) -> Node:
    tuning = next((group for group in groups if arm.group in group.arms), None)
    pending = tuning is not None and tuning.best is None
    return Node(
        name=arm.name,
        kind="train",
        role="arm",
        arm=arm.group,
        seed=arm.config.seed,
        values=arm.values,
        inputs=tuple(trial.name for trial in tuning.trials) if tuning and pending else (),
        config=arm.config,
        cluster=arm.name,
        fingerprint=train_fingerprint(arm.config, stores),
        pending=pending,
    )


def _trial_nodes(group: TunedGroup, stores: Mapping[str, str]) -> list[Node]:
    return [
        Node(
            name=trial.name,
            kind="train",
            role="tune",
            arm=trial.name.rpartition(".seed-")[0],
            seed=trial.config.seed,
            values=trial.values,
            config=trial.config,
            cluster=trial.name,
            fingerprint=train_fingerprint(trial.config, stores),
        )
        for trial in group.trials
    ]


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
