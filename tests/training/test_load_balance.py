"""The figures of sparse layers in a step, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from reptrain.training.load_balance import routing_records


def model_of(*names: str) -> Any:
    return SimpleNamespace(sparse_layers=lambda: [(name, None) for name in names])


def test_figures_are_sums_divided_by_targets_or_by_assigned_tokens() -> None:
    # Sums of the balance loss and the z-loss; dropped and assigned tokens; tokens of four experts.
    first, second = [6.0, 3.0, 2.0, 40.0, 16.0, 0.0, 14.0, 10.0], [9.0, 1.5, 0.0, 8.0, 2.0, 2.0, 2.0, 2.0]
    one, two = routing_records(model_of("layers.1", "layers.3"), [first, second], 12) or []
    assert (one.layer, one.balance, one.z, one.dropped) == ("layers.1", 0.5, 0.25, 0.05)
    # The busiest expert has 16 of 40, where 10 would be its share; one expert has none.
    assert (one.load, one.unused) == (pytest.approx(1.6), 1)
    assert (two.layer, two.balance, two.z, two.dropped, two.load, two.unused) == (
        "layers.3", 0.75, 0.125, 0.0, 1.0, 0,
    )  # fmt: skip


def test_a_dense_model_has_no_figures_and_an_empty_step_divides_by_one() -> None:
    assert routing_records(model_of(), None, 12) is None
    (record,) = routing_records(model_of("layers.0"), [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], 12) or []
    assert (record.dropped, record.load, record.unused) == (0.0, 0.0, 2)
