"""Operators of the kernels: gradients as those of torch's custom operators, with fewer calls on the host."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from reptrain_kernels.operator import Operator


def multiply(x: Tensor, factor: Tensor | None, power: float) -> tuple[Tensor, Tensor]:
    """x factor ** power, and the factor."""
    scale = torch.ones(()) if factor is None else factor**power
    return x * scale, scale.clone()


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def gradient(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (scale,) = ctx.saved_tensors
    return None if grad is None else grad * scale, None, None


def registered(operator: Any) -> Any:
    operator.register_fake(multiply)
    operator.register_autograd(gradient, setup_context=keep)
    return operator


OURS = registered(Operator("reptrain_tests::ours", multiply))
TORCHS = registered(torch.library.custom_op("reptrain_tests::torchs", multiply, mutates_args=()))
WITHOUT = Operator("reptrain_tests::without", multiply)


def step(operator: Callable[..., Any], x: Tensor, factor: Tensor | None) -> Tensor:
    """The gradient of the operator's sum."""
    x = x.clone().requires_grad_()
    operator(x, factor, 2.0)[0].sum().backward()
    assert x.grad is not None
    return x.grad


def count_calls(function: Callable[[], object]) -> int:
    """Calls of functions of Python and of C that a call makes in this thread."""
    counts = {"call": 0, "c_call": 0}

    def count(frame: Any, event: str, argument: Any) -> None:
        if event in counts:
            counts[event] += 1

    function()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return sum(counts.values())


@pytest.mark.parametrize("factor", [None, torch.tensor(3.0)])
def test_operator_has_its_gradient(factor: Tensor | None) -> None:
    x = torch.randn(4)
    assert torch.equal(step(OURS, x, factor), step(TORCHS, x, factor))
    assert not OURS(x, factor, 2.0)[0].requires_grad
    with torch.no_grad():
        assert not OURS(x.requires_grad_(), factor, 2.0)[0].requires_grad


def test_operator_is_registered_for_torch_compile() -> None:
    x = torch.randn(4, requires_grad=True)
    torch.library.opcheck(OURS.overload, (x, torch.tensor(3.0), 2.0))
    compiled = torch.compile(partial(step, OURS), backend="aot_eager")
    assert torch.equal(compiled(x.detach(), None), torch.ones(4))


def test_operator_without_a_gradient_refuses_it() -> None:
    with pytest.raises(NotImplementedError, match="reptrain_tests::without has no gradient"):
        step(WITHOUT, torch.randn(4), None)


def test_operator_makes_fewer_calls_than_torchs_custom_operators() -> None:
    x = torch.randn(4, requires_grad=True)
    ours, torchs = (count_calls(partial(operator, x, None, 2.0)) for operator in (OURS, TORCHS))
    assert ours <= 0.7 * torchs
