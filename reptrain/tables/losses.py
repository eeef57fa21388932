"""The losses that stand for a run: at its end, and where the selection split is lowest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from reptrain.config import RunConfig
from reptrain.config.json_digest import fingerprint
from reptrain.runs.metrics import ValidRecord


def best_evaluation(select: Iterable[ValidRecord]) -> ValidRecord | None:
    """The evaluation with the lowest finite loss after the first step, or None.

    The initial weights are never chosen: they are not a result of the run.

    Args:
        select: Evaluations on the selection split.
    """
    trained = [record for record in select if record.step > 0 and math.isfinite(record.nats)]
    return min(trained, key=lambda record: record.nats, default=None)


def at_step(records: Sequence[ValidRecord], step: int) -> ValidRecord | None:
    """The evaluation after ``step`` steps, or None."""
    return next((record for record in records if record.step == step), None)


def loss_measure(config: RunConfig, store_fingerprint: str) -> str:
    """Fingerprint of held-out text, objective and window. Losses of different measures are not comparable.

    Args:
        config: The run.
        store_fingerprint: Of the store whose held-out text is scored.
    """
    objective = config.objective.scored_settings
    return fingerprint([store_fingerprint, objective, config.window_tokens, config.data.document_mask])
