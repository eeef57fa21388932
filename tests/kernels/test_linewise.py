"""The linewise operations in Triton, without a GPU and on one; other files test their references."""

from __future__ import annotations

from typing import Any

import gated_cases
import linear_cross_entropy_cases
import norm_cases
import pytest
import rope_cases
from interpreted import results_of
from linewise import assert_within, run_on_a_gpu
from time_limits import takes_up_to

OPERATIONS = {
    "norm": norm_cases,
    "gated": gated_cases,
    "rope": rope_cases,
    "linear_cross_entropy": linear_cross_entropy_cases,
}
CHECKS = {
    "norm": ("masks",),
    "gated": ("masks",),
    "rope": (),
    "linear_cross_entropy": ("correct", "not_finite", "backward"),
}
CASES = [(operation, name) for operation, cases in OPERATIONS.items() for name in cases.CASES]
SLOW_CASES = [(operation, name) for operation, cases in OPERATIONS.items() for name in cases.SLOW_CASES]


@pytest.fixture(scope="module")
@takes_up_to(1800)
def results() -> Any:
    """One process for all operations: imports take most of the time of a small one."""
    return results_of(
        "linewise_interpreted.py",
        *(
            f"{operation}:{name}"
            for operation, cases in OPERATIONS.items()
            for name in (*cases.CASES, "same_bits", *CHECKS[operation])
        ),
    )


@pytest.mark.parametrize(("operation", "name"), CASES)
def test_interpreted_kernels_equal_float64(operation: str, name: str, results: Any) -> None:
    assert_within(OPERATIONS[operation], name, results[f"{operation}:{name}"])


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "name"), SLOW_CASES)
def test_interpreted_kernels_equal_float64_on_long_lines(operation: str, name: str) -> None:
    argument = f"{operation}:{name}"
    assert_within(OPERATIONS[operation], name, results_of("linewise_interpreted.py", argument)[argument])


@pytest.mark.parametrize("way", ["again", "recomputed", "compiled"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_interpreted_kernels_give_the_same_bits(operation: str, way: str, results: Any) -> None:
    assert results[f"{operation}:same_bits"][way]


def test_interpreted_activate_drops_the_units_of_the_counter(results: Any) -> None:
    assert results["gated:masks"] == {"0.25": True, "0.75": True}


def test_interpreted_join_has_the_bits_of_the_reference(results: Any) -> None:
    masks = results["norm:masks"]
    assert len(masks) == 8
    assert all(masks.values()), masks


@pytest.mark.parametrize("check", CHECKS["linear_cross_entropy"])
def test_interpreted_loss_agrees_with_torch(check: str, results: Any) -> None:
    values = results[f"linear_cross_entropy:{check}"]
    assert values and all(values.values()), values


@pytest.mark.gpu
@pytest.mark.parametrize(("operation", "name"), CASES + SLOW_CASES)
def test_kernels_on_a_gpu_equal_float64(operation: str, name: str) -> None:
    run_on_a_gpu(OPERATIONS[operation], name)
