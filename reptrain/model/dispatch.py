"""The way of tokens to their experts and back.

Shapes: B rows of a micro-batch, T positions, D width of the residual stream, E experts, K experts of a token,
N = B T K assignments.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Dispatch:
    """Sorts the assignments of tokens to experts by expert.

    Every assignment takes part, so that shapes are static; one that has no say has weight 0 on its way back.

    Args:
        expert_BTK: int64, the experts of each token.
        num_experts: E.
    """

    def __init__(self, expert_BTK: Tensor, num_experts: int) -> None:
        expert_N = expert_BTK.flatten()
        self.top_k = expert_BTK.shape[-1]
        self.order_N = expert_N.argsort(stable=True)
        """int64: which assignment comes at each place of the sorted ones."""
        # Not bincount, whose shape torch.compile cannot tell.
        zeros_E = expert_N.new_zeros(num_experts)
        self.count_E = zeros_E.scatter_add(0, expert_N, torch.ones_like(expert_N))
        """int64: assignments of each expert."""

    def send(self, x_BTD: Tensor) -> Tensor:
        """Each token as often as it is assigned, sorted by expert: x_ND."""
        # Spread out before it is sorted: the gradient is then put back, and summed in a fixed order.
        x_BTKD = x_BTD[:, :, None].expand(-1, -1, self.top_k, -1)
        return x_BTKD.flatten(0, 2)[self.order_N]

    def collect(self, y_ND: Tensor, gate_BTK: Tensor) -> Tensor:
        """Each token's assignments put together, weighted by the gates: y_BTD."""
        place_N = torch.empty_like(self.order_N).scatter_(
            0, self.order_N, torch.arange(len(self.order_N), device=self.order_N.device)
        )
        y_BTKD = y_ND[place_N].view(*gate_BTK.shape, -1)
        return (y_BTKD * gate_BTK[..., None].to(y_ND.dtype)).sum(2)
