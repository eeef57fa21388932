"""Recommendations that no law gives, with their sources: sparsity, dropout, weight decay, early stopping."""

from __future__ import annotations

from reptrain.config.base import Frozen


class Hint(Frozen):
    """A recommendation that no law gives, with its source."""

    topic: str
    advice: str
    source: str


def hints(epochs: float) -> list[Hint]:
    """The recommendations for a number of epochs."""
    return [_sparsity(epochs), _dropout(epochs), _decay(epochs), _stop(epochs)]


def _sparsity(epochs: float) -> Hint:
    if epochs <= 16:
        advice = "MoE: at equal active parameters it is better than dense up to 16 epochs"
    elif epochs < 32:
        advice = "undecided: MoE is better than dense up to 16 epochs and worse from 32"
    else:
        advice = "dense: from 32 epochs an MoE of equal active parameters is worse"
    return Hint(topic="dense or MoE", advice=advice, source="arXiv 2609.11917, 80M to 1B active, D = 20 N")


def _dropout(epochs: float) -> Hint:
    if epochs <= 1:
        return Hint(topic="dropout", advice="0: at one epoch any dropout hurts", source="arXiv 2505.24788")
    if epochs <= 4:
        return Hint(
            topic="dropout", advice="0 to 0.1: four epochs are nearly free", source="Muennighoff et al., 2023"
        )
    if epochs <= 16:
        return Hint(topic="dropout", advice="0.1", source="Galactica, 4.25 epochs at 0.1")
    return Hint(
        topic="dropout",
        advice="0.2 to 0.3; sweep 0.1 to 0.5 on a proxy",
        source="Xue et al., 2023, section 5",
    )


def first_dropout(epochs: float) -> float:
    """The lowest dropout that the hint for so many epochs names."""
    return 0.0 if epochs <= 4 else 0.1 if epochs <= 16 else 0.2


def _decay(epochs: float) -> Hint:
    if epochs <= 4:
        return Hint(topic="weight decay", advice="0.1 (AdamW)", source="common practice")
    return Hint(
        topic="weight decay",
        advice="sweep 0.1 to 3.2 (AdamW), starting at 1.0; results differ, so measure",
        source="Kim et al., 2025 and arXiv 2605.01640: large decay is best; arXiv 2609.11917: no effect",
    )


def first_decay(epochs: float) -> float:
    """The weight decay at which the hint for so many epochs starts."""
    return 0.1 if epochs <= 4 else 1.0


def _stop(epochs: float) -> Hint:
    advice = "evaluate every epoch on the selection split and keep the best checkpoint"
    if epochs <= 4:
        advice = "the last checkpoint will do"
    return Hint(topic="early stopping", advice=advice, source="the law counts final losses")
