"""Gated activations: the reference in plain torch (`test_linewise` tests the kernels)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from reptrain_kernels import counter
from reptrain_kernels.ops.gated import activate


def plain(activation: str, up: float, gate: float) -> float:
    """One unit."""
    x = up if activation in ("gelu", "relu") else gate
    if activation == "relu":
        return max(x, 0.0)
    if activation == "swiglu":
        return x / (1 + math.exp(-x)) * up
    value = 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return value * (up if activation == "geglu" else 1.0)


@pytest.mark.parametrize("activation", ["swiglu", "geglu", "gelu", "relu"])
def test_activate_follows_its_written_formula(activation: Any) -> None:
    is_gated = activation in ("swiglu", "geglu")
    up, gate = (torch.linspace(-4, 4, 9, dtype=torch.float64) * scale for scale in (1.0, -1.5))
    expected = [plain(activation, *pair) for pair in zip(up.tolist(), gate.tolist(), strict=True)]
    h = activate(activation, up, gate if is_gated else None)
    torch.testing.assert_close(h, torch.tensor(expected, dtype=torch.float64))


def test_activate_drops_units_by_the_counter() -> None:
    key = counter.row_keys(3, 5, torch.arange(2))
    up, gate = torch.randn(2, 2, 5, 8).unbind(0)
    whole = activate("swiglu", up, gate)
    assert torch.equal(activate("swiglu", up, gate, key=key, rate=0.4), counter.dropout(whole, key, 0.4))
    assert torch.equal(activate("swiglu", up, gate, key=key, rate=0.0), whole)


def test_activate_drops_the_units_of_some_positions_as_in_the_whole() -> None:
    key, position_P = counter.row_keys(3, 5, torch.arange(2)), torch.tensor([1, 4])
    up, gate = torch.randn(2, 2, 5, 8).unbind(0)
    whole = activate("swiglu", up, gate, key=key, rate=0.4)
    of_part = counter.position_keys(key, position_P)
    part = activate("swiglu", up[:, position_P], gate[:, position_P], key=of_part, rate=0.4)
    # The exponential's last bit depends on where in a vector a number lies; the mask must not.
    assert torch.equal(part == 0, whole[:, position_P] == 0)
    torch.testing.assert_close(part, whole[:, position_P])


def test_activate_passes_gradcheck() -> None:
    key = counter.row_keys(3, 5, torch.arange(2))
    up, gate = (x.requires_grad_() for x in torch.randn(2, 2, 3, 4, dtype=torch.float64).unbind(0))
    assert torch.autograd.gradcheck(lambda *x: activate("geglu", *x, key=key, rate=0.3), (up, gate))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "tanh"}, "activation: must be one of"),
        ({"gate": None}, "gate: must be given for swiglu and geglu only, but the activation is swiglu"),
        ({"activation": "relu"}, "gate: must be given for swiglu and geglu only"),
        ({"gate": torch.ones(1, 4, 7)}, "as up is"),
        ({"gate": torch.ones(1, 4, 8).half()}, "but got torch.float16"),
        ({"key": torch.ones(2).long()}, r"key: must be int64 of shape \(1,\)"),
        ({"rate": 1.0}, "rate: must be in"),
    ],
)
def test_activate_refuses_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    x = torch.ones(1, 4, 8)
    with pytest.raises(ValueError, match=message):
        activate(**({"activation": "swiglu", "up": x, "gate": x} | change))
