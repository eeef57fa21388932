"""From a study to its graph."""

from __future__ import annotations

from pathlib import Path

from reptrain.study.graph import Graph, Node, in_order, store_fingerprints, train_fingerprint
from reptrain.study.grid import arms
from reptrain.study.schema import StudyConfig


def build_graph(study: StudyConfig, out: Path) -> Graph:
    """The nodes of a study, inputs first.

    Args:
        study: The study.
        out: Its folder, for the settings that were tuned.

    Raises:
        StudyError: If an arm's configuration is wrong, or the nodes form no graph.
    """
    planned = arms(study)
    stores = store_fingerprints(arm.config for arm in planned)
    return in_order(
        (
            Node(
                name=arm.name,
                kind="train",
                role="arm",
                arm=arm.group,
                seed=arm.config.seed,
                values=arm.values,
                config=arm.config,
                cluster=arm.name,
                fingerprint=train_fingerprint(arm.config, stores),
            )
            for arm in planned
        ),
        study=study.name,
    )
