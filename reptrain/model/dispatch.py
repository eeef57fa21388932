"""Dispatch tokens to their experts, and combine the experts' outputs.

Shapes: B rows of a micro-batch, T positions, D width of the residual stream, E experts, K experts per token,
N = B T K assignments of a token to an expert.
"""

from __future__ import annotations

from torch import Tensor

from reptrain_kernels.implementation import Implementation
from reptrain_kernels.ops import permute


class Dispatch:
    """The assignments of tokens to experts, sorted by expert.

    Dropped assignments and padding are dispatched too, so that shapes are static; their gates are 0.

    Args:
        expert_BTK: int64, experts of each token.
        num_experts: E.
        impl: Implementation that moves the rows (see `reptrain_kernels.ops.permute`); None: by the device.
    """

    def __init__(self, expert_BTK: Tensor, num_experts: int, *, impl: Implementation | None = None) -> None:
        self.impl = impl
        self.places, self.count_E = permute.sort(expert_BTK.flatten(0, 1), num_experts, impl=impl)
        """count_E: int64, number of assignments of each expert."""
        self.order_N = self.places.order_N
        """int64: index of the assignment at each sorted place."""

    def dispatch(self, x_BTD: Tensor) -> Tensor:
        """Copy each token to its K assignments, x_ND, sorted by expert."""
        return permute.dispatch(x_BTD.flatten(0, 1), self.places, impl=self.impl)

    def combine(self, y_ND: Tensor, gate_BTK: Tensor) -> Tensor:
        """Sum the outputs of each token's experts, weighted by the gates: y_BTD."""
        y_MD = permute.combine(y_ND, gate_BTK.flatten(0, 1), self.places, impl=self.impl)
        return y_MD.view(*gate_BTK.shape[:2], -1)
