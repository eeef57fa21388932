"""Whole models whose every fused operation runs in Triton, interpreted."""

from __future__ import annotations

from typing import Any

import pytest
from interpreted import results_of


@pytest.fixture(scope="module")
def found() -> Any:
    return results_of("models_interpreted.py")


# Each attention runs once, and once more where its layer is recomputed.
@pytest.mark.parametrize(("model", "calls"), [("t5", 2 * 5), ("decoder", 2 * 2)])
def test_training_step_in_triton_has_the_plain_paths_gradients(model: str, calls: int, found: Any) -> None:
    assert found[model]["calls"] == calls
    assert found[model]["loss"] < 1e-6
    assert found[model]["grad"] < 1e-5
