"""Sparse runs compared where rounding may send a token to another expert.

Two ways to compute the same run differ in the last bits, and where two experts score alike to that precision
a token goes to the other one: which machine has such a token is chance. Up to there the runs agree as dense
ones do; from there on as closely as one token of a batch moves the mean.
"""

from __future__ import annotations

import json
from itertools import accumulate

import pytest

from reptrain.runs import RunFolder

EXACT, AFTER_A_FLIP = 1e-5, 2e-3
# An evaluation routes too, and keeps no counts.
EVALUATED = 1e-4


def flips(found: RunFolder, plain: RunFolder) -> list[float]:
    """In each step, how many assignments at least went to another expert; at most one in a hundred may."""
    counts_SLE, plain_SLE = (
        json.loads((folder.path.parent / f"{folder.path.name}-counts.json").read_text())
        for folder in (found, plain)
    )
    flipped, assigned = [], 0.0
    for layers, plain_layers in zip(counts_SLE, plain_SLE, strict=True):
        pairs = [pair for both in zip(layers, plain_layers, strict=True) for pair in zip(*both, strict=True)]
        flipped.append(sum(abs(one - other) for one, other in pairs) / 2)
        assigned += sum(other for _, other in pairs)
    assert sum(flipped) <= 0.01 * assigned, flipped
    return flipped


def assert_losses_agree(found: RunFolder, plain: RunFolder) -> None:
    """Losses of training and of the evaluations."""
    so_far = list(accumulate(flips(found, plain)))
    trained, expected = (list(folder.metrics.records("train")) for folder in (found, plain))
    for record, wanted, flipped in zip(trained, expected, so_far, strict=True):
        near = AFTER_A_FLIP if flipped else EXACT
        assert record.loss_nats == pytest.approx(wanted.loss_nats, rel=0, abs=near), record.step
        if not flipped:
            assert record.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-4), record.step
    evaluated, expected_evaluated = (list(folder.metrics.records("valid")) for folder in (found, plain))
    for score, wanted_score in zip(evaluated, expected_evaluated, strict=True):
        near = AFTER_A_FLIP if score.step and so_far[score.step - 1] else EVALUATED
        assert (score.step, score.set) == (wanted_score.step, wanted_score.set)
        assert score.nats == pytest.approx(wanted_score.nats, rel=0, abs=near), (score.step, score.set)


def assert_routing_agrees(found: RunFolder, plain: RunFolder) -> bool:
    """Figures of each layer in each step; returns whether no token went elsewhere."""
    so_far = list(accumulate(flips(found, plain)))
    records, expected = (folder.metrics.records("train") for folder in (found, plain))
    for record, wanted, flipped in zip(records, expected, so_far, strict=True):
        assert record.routing and wanted.routing
        near = {"abs": 0.05} if flipped else {"rel": 1e-5, "abs": 1e-6}
        for layer, wanted_layer in zip(record.routing, wanted.routing, strict=True):
            assert layer.layer == wanted_layer.layer
            figures, wanted_figures = (one.model_dump(exclude={"layer"}) for one in (layer, wanted_layer))
            assert figures == pytest.approx(wanted_figures, **near), (record.step, layer.layer)
    return not so_far[-1]
