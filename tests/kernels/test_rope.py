"""Rotary embedding: the reference in plain torch (`test_linewise` tests the kernels)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import rope_cases as cases
import torch

from reptrain_kernels.ops.rope import rotate


def test_rotate_follows_its_written_formula() -> None:
    case = cases.CASES["own_positions"]._replace(dtype=torch.float64, positions=3, width=6)
    inputs = cases.inputs_of(case)
    turned = rotate(inputs.q, inputs.k, inputs.cos, inputs.sin)
    for x, y in zip((inputs.q, inputs.k), turned, strict=True):
        for b, t, h, i in torch.cartesian_prod(*(torch.arange(n) for n in (*x.shape[:3], 3))).tolist():
            angle = math.atan2(inputs.sin[b, t, i], inputs.cos[b, t, i])
            before, after = (complex(z[b, t, h, i], z[b, t, h, i + 3]) for z in (x, y))
            expected = before * complex(math.cos(angle), math.sin(angle))
            assert after == pytest.approx(expected, abs=1e-6)


def test_rotate_passes_gradcheck() -> None:
    case = cases.CASES["grouped"]._replace(positions=3, width=4)
    inputs = cases.inputs_of(case)
    angles = (inputs.cos.double(), inputs.sin.double())
    leaves = [x.detach().double().requires_grad_() for x in cases.leaves_of(inputs)]
    assert torch.autograd.gradcheck(lambda q, k: rotate(q, k, *angles), leaves)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_BTKN": torch.ones(1, 4, 2, 6)}, "must agree in all but heads"),
        ({"k_BTKN": torch.ones(1, 3, 2, 8)}, "must agree in all but heads"),
        ({name: torch.ones(1, 4, 2, 7) for name in ("q_BTHN", "k_BTKN")}, "width be even"),
        ({"k_BTKN": torch.ones(1, 4, 2, 8).half()}, "must have one dtype"),
        ({"cos_TM": torch.ones(4, 8)}, r"cos_TM: must have shape \(4, 4\) or \(1, 4, 4\)"),
        ({"sin_TM": torch.ones(1, 4, 4)}, "sin_TM: must have shape"),
        ({"impl": "cuda"}, "impl: must be one of"),
    ],
)
def test_rotate_refuses_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    given = {"q_BTHN": torch.ones(1, 4, 2, 8), "k_BTKN": torch.ones(1, 4, 1, 8)}
    given |= {name: torch.ones(4, 4) for name in ("cos_TM", "sin_TM")}
    with pytest.raises(ValueError, match=message):
        rotate(**(given | change))


def test_rotate_compiles_with_rows_that_are_symbolic_in_some_inputs() -> None:
    inputs = cases.inputs_of(cases.CASES["own_positions"])
    for x in (inputs.q, inputs.k):
        torch._dynamo.maybe_mark_dynamic(x, 0)
    compiled = torch.compile(rotate, backend="eager", fullgraph=True)
    given = (inputs.q, inputs.k, inputs.cos, inputs.sin)
    torch.testing.assert_close(compiled(*given), rotate(*given))
