"""What the tests of operations on lines share; `cases` is one of their modules of cases."""

from __future__ import annotations

from typing import Any

import torch
from tolerances import relative_error, tolerance


def case_of(cases: Any, name: str) -> Any:
    """A case, quick or slow."""
    return (cases.CASES | cases.SLOW_CASES)[name]


def errors_of(cases: Any, name: str, device: str = "cpu") -> dict[str, float]:
    """Of each result of a case in Triton against float64."""
    case = case_of(cases, name)
    inputs = cases.inputs_of(case, device)
    expected = cases.results(case, inputs, "torch", exact=True)
    found = cases.results(case, inputs, "triton")
    assert all(x.dtype != torch.float64 for x in found.values())
    return {key: relative_error(found[key], expected[key], inputs.upstream) for key in expected}


def assert_within(cases: Any, name: str, errors: dict[str, float]) -> None:
    """Every result's error is within the table."""
    assert len(errors) > 1
    for key, error in errors.items():
        assert error <= tolerance(case_of(cases, name).narrowest, cases.KINDS.get(key, "gradient")), (
            key,
            error,
        )


def run_on_a_gpu(cases: Any, name: str) -> None:
    """A case against float64, and the same bits a second time."""
    assert_within(cases, name, errors_of(cases, name, "cuda"))
    case = case_of(cases, name)
    inputs = cases.inputs_of(case, "cuda")
    first, second = (cases.results(case, inputs, "triton") for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
