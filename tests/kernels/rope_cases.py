"""What rotary embedding is tested on, interpreted and on a GPU: settings, seeded inputs, references."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from reptrain_kernels.ops.rope import rotate


class Case(NamedTuple):
    """Sizes and features; the sizes are no multiples of a block's."""

    dtype: torch.dtype = torch.float32
    rows: int = 2
    positions: int = 7
    heads: int = 4
    kv_heads: int = 2
    width: int = 24
    own_positions: bool = False
    """Whether each row has angles of its own."""

    @property
    def narrowest(self) -> torch.dtype:
        """The dtype that bounds how exact a result may be."""
        return self.dtype


CASES = {
    "grouped": Case(),
    "own_positions": Case(own_positions=True),
    "one": Case(rows=1, positions=1, heads=1, kv_heads=1, width=2),
    "width_64": Case(positions=33, heads=3, kv_heads=3, width=64),
    "width_256": Case(positions=5, width=256, own_positions=True),
    "fp16": Case(torch.float16),
    "bf16": Case(torch.bfloat16, own_positions=True),
}

SLOW_CASES = {"llama": Case(torch.bfloat16, positions=500, heads=32, kv_heads=4, width=64)}

KINDS = {"turned_q": "output", "turned_k": "output"}
"""Of results that are no gradients of inputs."""


class Inputs(NamedTuple):
    """The tensors of a case."""

    q: Tensor
    k: Tensor
    cos: Tensor
    sin: Tensor
    upstream: Tensor
    upstream_of_k: Tensor


def inputs_of(case: Case, device: str = "cpu") -> Inputs:
    """Seeded; keys are a part of a larger product, and what comes back to them is laid out head by head."""
    generator = torch.Generator().manual_seed(case.width)

    def heads(number: int) -> Tensor:
        shape = (case.rows, case.positions, number, case.width)
        return torch.randn(shape, generator=generator).to(case.dtype).to(device)

    shape = (case.rows,) * case.own_positions + (case.positions, case.width // 2)
    angle = (7 * torch.randn(shape, generator=generator)).to(device)
    return Inputs(
        heads(case.heads),
        heads(2 * case.kv_heads)[:, :, case.kv_heads :],
        angle.cos(),
        angle.sin(),
        heads(case.heads),
        heads(case.kv_heads).transpose(1, 2).contiguous().transpose(1, 2),
    )


def leaves_of(inputs: Inputs) -> list[Tensor]:
    """The inputs that have gradients."""
    return [inputs.q, inputs.k]


def call(case: Case, inputs: Inputs, leaves: list[Tensor], impl: str) -> list[Tensor]:
    """The outputs of the case."""
    q, k = rotate(*leaves, inputs.cos, inputs.sin, impl=impl)
    return [q, k]


def results(case: Case, inputs: Inputs, impl: str, *, exact: bool = False) -> dict[str, Tensor]:
    """The outputs and every gradient, by name; ``exact`` in float64."""
    leaves = [(x.double() if exact else x).detach().requires_grad_() for x in leaves_of(inputs)]
    outputs = call(case, inputs, leaves, impl)
    upstream = [x.to(outputs[0].dtype) for x in (inputs.upstream, inputs.upstream_of_k)]
    grads = torch.autograd.grad(outputs, leaves, upstream)
    outputs = [x.detach() for x in outputs]
    return dict(zip(("turned_q", "turned_k", "q", "k"), (*outputs, *grads), strict=True))


OPERATOR_CASE = "own_positions"


def operators(case: Case, inputs: Inputs, leaves: list[Tensor]) -> list[tuple[Any, tuple[Any, ...]]]:
    """The registered operators and what to check each with."""
    from reptrain_kernels.ops.rope.triton import rotate_both

    return [(rotate_both, (*leaves, inputs.cos, inputs.sin, 1.0))]
