"""What gated activations are tested on, interpreted and on a GPU: settings, seeded inputs, references."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from reptrain_kernels import counter, rates
from reptrain_kernels.ops.gated import Activation, activate


class Case(NamedTuple):
    """Sizes and features; the sizes are no multiples of a tile's."""

    activation: Activation
    rate: float = 0.0
    dtype: torch.dtype = torch.float32
    rows: int = 2
    positions: int = 7
    units: int = 300

    @property
    def narrowest(self) -> torch.dtype:
        """The dtype that bounds how exact a result may be."""
        return self.dtype


CASES = {
    "swiglu": Case("swiglu", units=530),
    "swiglu_dropout": Case("swiglu", 0.3),
    "geglu": Case("geglu"),
    "geglu_dropout": Case("geglu", 0.6, positions=1, units=33),
    "gelu_dropout": Case("gelu", 0.3),
    "relu_dropout": Case("relu", 0.3),
    "relu": Case("relu", rows=1, positions=1, units=1),
    "swiglu_fp16": Case("swiglu", 0.2, torch.float16),
    "swiglu_bf16": Case("swiglu", 0.2, torch.bfloat16),
    "geglu_fp16": Case("geglu", 0.2, torch.float16),
    "geglu_bf16": Case("geglu", 0.2, torch.bfloat16),
}

SLOW_CASES = {"t5_base": Case("geglu", 0.1, torch.bfloat16, positions=500, units=2048)}

KINDS = {"h": "output"}
"""Of results that are no gradients of inputs."""


class Inputs(NamedTuple):
    """The tensors of a case."""

    up: Tensor
    gate: Tensor | None
    key: Tensor | None
    upstream: Tensor


def inputs_of(case: Case, device: str = "cpu") -> Inputs:
    """Seeded; up and gate are halves of one product, so that neither is contiguous."""
    generator = torch.Generator().manual_seed(case.units)

    def random(units: int) -> Tensor:
        x = 2 * torch.randn(case.rows, case.positions, units, generator=generator)
        return x.to(case.dtype).to(device)

    up, gate = random(2 * case.units).chunk(2, dim=-1)
    key = torch.randint(-(2**63), 2**63 - 1, (case.rows,), generator=generator).to(device)
    is_gated = case.activation in ("swiglu", "geglu")
    return Inputs(up, gate if is_gated else None, key if case.rate else None, random(case.units))


def leaves_of(inputs: Inputs) -> list[Tensor]:
    """The inputs that have gradients."""
    return [inputs.up] if inputs.gate is None else [inputs.up, inputs.gate]


def call(case: Case, inputs: Inputs, leaves: list[Tensor], impl: str) -> list[Tensor]:
    """The outputs of the case."""
    return [activate(case.activation, *leaves, key=inputs.key, rate=case.rate, impl=impl)]


def results(case: Case, inputs: Inputs, impl: str, *, exact: bool = False) -> dict[str, Tensor]:
    """The output and every gradient, by name; ``exact`` in float64."""
    leaves = [(x.double() if exact else x).detach().requires_grad_() for x in leaves_of(inputs)]
    (h,) = call(case, inputs, leaves, impl)
    grads = torch.autograd.grad(h, leaves, inputs.upstream.to(h.dtype))
    return {"h": h.detach()} | dict(zip(("up", "gate"), grads, strict=False))


OPERATOR_CASE = "geglu_dropout"


def operators(case: Case, inputs: Inputs, leaves: list[Tensor]) -> list[tuple[Any, tuple[Any, ...]]]:
    """The registered operators and what to check each with."""
    from reptrain_kernels.ops.gated.triton import gated_backward, gated_forward

    rest = (inputs.key, rates.packed(case.rate), case.activation)
    plain = (inputs.upstream, *(x.detach() for x in leaves))
    return [(gated_forward, (*leaves, *rest)), (gated_backward, (*plain, *rest))]


def masks() -> dict[str, bool]:
    """Whether what is dropped, in h and in the gradient, is what the counter drops, at some rates."""
    key = counter.row_keys(3, 5, torch.arange(2))
    up = torch.ones(2, 9, 40, requires_grad=True)
    found = {}
    for rate in (0.25, 0.75):
        h = activate("relu", up, key=key, rate=rate, impl="triton")
        (grad,) = torch.autograd.grad(h.sum(), up)
        kept = counter.dropout(torch.ones(2, 9, 40), key, rate, impl="torch")
        found[str(rate)] = torch.equal(h, kept) and torch.equal(grad, kept)
    return found
