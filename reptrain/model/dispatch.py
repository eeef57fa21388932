"""The way of tokens to their experts and back.

Shapes: B rows of a micro-batch, T positions, D width of the residual stream, E experts, K experts of a token,
N = B T K assignments.
"""

from __future__ import annotations

from torch import Tensor

from reptrain_kernels.implementation import Implementation
from reptrain_kernels.ops.permute import collect, send, sort


class Dispatch:
    """Sorts the assignments of tokens to experts by expert.

    Every assignment takes part, so that shapes are static; one that has no say has weight 0 on its way back.

    Args:
        expert_BTK: int64, the experts of each token.
        num_experts: E.
        impl: How rows are moved (see `reptrain_kernels.ops.permute`).
    """

    def __init__(self, expert_BTK: Tensor, num_experts: int, *, impl: Implementation | None = None) -> None:
        self.impl = impl
        self.places, self.count_E = sort(expert_BTK.flatten(0, 1), num_experts, impl=impl)
        """count_E, int64: assignments of each expert."""
        self.order_N = self.places.order_N
        """int64: which assignment comes at each place of the sorted ones."""

    def send(self, x_BTD: Tensor) -> Tensor:
        """Each token as often as it is assigned, sorted by expert: x_ND."""
        return send(x_BTD.flatten(0, 1), self.places, impl=self.impl)

    def collect(self, y_ND: Tensor, gate_BTK: Tensor) -> Tensor:
        """Each token's assignments put together, weighted by the gates: y_BTD."""
        y_MD = collect(y_ND, gate_BTK.flatten(0, 1), self.places, impl=self.impl)
        return y_MD.view(*gate_BTK.shape[:2], -1)
