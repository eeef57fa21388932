"""Whole models whose every fused operation runs in Triton, interpreted."""

from __future__ import annotations

from typing import Any

import pytest
from interpreted import results_of
from time_limits import takes_up_to


@pytest.fixture(scope="module")
@takes_up_to(900)
def found() -> Any:
    """One process for all quick models."""
    return results_of("models_interpreted.py", *QUICK)


# Layers are recomputed, so that each operation in one runs twice. T5: one layer, and two that read it. A
# branch that no norm follows in its layer is joined alone, and once more for its gradient; so are rotations.
CALLS = {
    "t5": {"attention": 2 * 5, "gated": 2 * 3, "norm": 2 * (2 + 2 * 3) + 2, "join": 3 * 3},
    "decoder": {"attention": 2 * 2, "gated": 2 * 2, "norm": 2 * 2 * 2 + 1, "join": 2 * 3, "rotate": 2 * 3},
}
CALLS["windowed_decoder"] = {"gated": 2, "norm": 2 * 2 + 1, "join": 3, "rotate": 3}
CALLS["t5_with_biases_by_layer"] = {"attention": 2 * 3, "gated": 2 * 2, "norm": 2 * 5 + 2, "join": 2 * 3}
# Dispatched rows are combined once more for their gradient. The decoder's experts are gated, with a dense MLP
# besides; the T5's are ungated, without one.
SPARSE = {"route": 2, "sort": 2, "dispatch": 2, "experts": 2, "combine": 3}
CALLS["sparse_decoder"] = {"attention": 2, "gated": 2, "norm": 5, "join": 3, "rotate": 3} | SPARSE
CALLS["sparse_t5"] = {"attention": 2 * 3, "norm": 2 * 5 + 2, "join": 2 * 3}
CALLS["sparse_t5"] |= {name: 2 * number for name, number in SPARSE.items()}
# Experts are multiplied in two launches forward and two back, besides their weights' gradients. The decoder
# keeps what they made, and calls them again for nothing.
CALLS["sparse_decoder"]["launches"], CALLS["sparse_t5"]["launches"] = 2 + 2, 2 * (2 + 2 + 2)


# The others have each operation too, in fewer layers; in the windowed decoder torch attends.
SLOW = ("t5", "decoder", "windowed_decoder")
QUICK = [model for model in CALLS if model not in SLOW]


@pytest.mark.parametrize("model", QUICK)
def test_training_step_in_triton_has_the_plain_paths_gradients(model: str, found: Any) -> None:
    check(model, found)


@pytest.mark.slow
@pytest.mark.parametrize("model", SLOW)
def test_training_step_of_more_models_in_triton_has_the_plain_paths_gradients(model: str) -> None:
    check(model, results_of("models_interpreted.py", model))


def check(model: str, found: Any) -> None:
    """Losses and gradients are those of the plain path, and each operation ran as often as it should."""
    assert found[model]["calls"] == CALLS[model] | {"loss": 1}
    assert found[model]["loss"] < 1e-6
    assert found[model]["grad"] < 1e-5
