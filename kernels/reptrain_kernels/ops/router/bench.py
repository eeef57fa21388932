"""`router.route` at the sparse layers of published models: compiled, modeled, timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reptrain_kernels.bench.operation import Operation, Ways, Work, own_ways
from reptrain_kernels.implementation import Implementation
from reptrain_kernels.ops.router import Score, route


class RouterShape(NamedTuple):
    """B rows of T tokens, E experts of which K are chosen."""

    name: str
    E: int
    K: int = 2
    score: Score = "softmax"
    B: int = 16
    T: int = 512
    dtype: torch.dtype = torch.float32

    @property
    def how(self) -> dict[str, Any]:
        """As models call it."""
        return {"top_k": self.K, "score": self.score, "normalize": self.K > 1}


SHAPES = [
    RouterShape("MoE-Base", 16),
    RouterShape("Switch-Base-128", 128, 1),
    RouterShape("Mixtral 8x7B", 8, B=2, T=4096),
    RouterShape("256 experts by sigmoid", 256, 8, "sigmoid"),
]


def _launch(shape: RouterShape) -> Callable[[], object]:
    from reptrain_kernels.ops.router.triton import launch_route, launch_route_backward

    on: dict[str, Any] = {"device": "meta"}
    logit_BTE, bias_E = torch.empty(shape.B, shape.T, shape.E, **on), torch.empty(shape.E, **on)
    is_token_BT = torch.empty(shape.B, shape.T, dtype=torch.bool, **on)
    how = (shape.score, shape.K > 1)

    def call() -> object:
        gate, share, square, expert, _ = launch_route(logit_BTE, is_token_BT, bias_E, shape.K, *how)
        return launch_route_backward(gate, share, square, logit_BTE, is_token_BT, expert, *how)

    return call


def _moved(shape: RouterShape, capability: int) -> list[list[Work]]:
    """Scores, then for each slot a search for the largest with its place, a look, and a mark."""
    tokens = shape.B * shape.T
    logits, slots = tokens * shape.E, tokens * shape.K
    exps = (2 if shape.score == "sigmoid" else 1) * logits
    search = 4 * shape.K * logits
    forward = Work("route", 0, 8 * logits + search, search, exps, 0, 4 * logits + 12 * slots + tokens)
    backward = Work(
        "route_gradient", 0, 14 * logits + 2 * shape.K * logits, shape.K * logits, exps, 0,
        8 * logits + 12 * slots + tokens,
    )  # fmt: skip
    return [[forward], [backward]]


def _needed(shape: RouterShape) -> list[Work]:
    """Everything moved once, which these kernels do; not their way of searching."""
    (forward,), (backward,) = _moved(shape, 80)
    return [
        Work(what, exps=kernel.exps, memory_bytes=kernel.memory_bytes)
        for what, kernel in (("forward", forward), ("backward", backward))
    ]


def _ways(shape: RouterShape, device: str) -> Ways:
    logit_BTE = torch.randn(shape.B, shape.T, shape.E, device=device, requires_grad=True)
    is_token_BT = torch.ones(shape.B, shape.T, dtype=torch.bool, device=device)
    bias_E = torch.zeros(shape.E, device=device)

    def call(impl: Implementation) -> Tensor:
        routed = route(logit_BTE, is_token_BT, bias_E, **shape.how, impl=impl)
        return torch.cat([routed.gate_BTK.flatten(), routed.share_BE.flatten(), routed.square_B])

    calls = own_ways(call)
    return Ways([logit_BTE], calls)


OPERATION = Operation(
    name="router",
    shapes=SHAPES,
    launch=_launch,
    needed=_needed,
    moved=_moved,
    ways=_ways,
    shown=("MoE-Base", "Switch-Base-128", "256 experts by sigmoid"),
)
