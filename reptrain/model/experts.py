"""The experts of a sparse layer: MLPs of one shape, each applied to the tokens dispatched to it.

Shapes: N assignments of a token to an expert, sorted by expert, D width of the residual stream, E experts,
F hidden units of an expert.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reptrain.config.model import Activation, MoEConfig, is_gated
from reptrain.config.scheduled import Scheduled
from reptrain.model.dropout import Dropout, Site
from reptrain.model.megablocks import megablocks_mm
from reptrain_kernels.ops.gated import activate
from reptrain_kernels.ops.grouped import grouped_mlp, one_by_one


class Experts(nn.Module):
    """E copies of `MLP` without biases; each projection is one parameter that stacks all experts.

    Args:
        d_model: D.
        d_ff: F.
        activation: Activation of the hidden units, gated or not.
        config: Configuration of the sparse layers.
        dropout: Dropout rate of the hidden units.

    Source:
        Fedus et al., "Switch transformers", 2021.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: Activation,
        config: MoEConfig,
        dropout: Scheduled | float,
    ) -> None:
        super().__init__()
        experts = config.num_experts
        self.backend = config.backend
        self.activation: Activation = activation
        self.dropout = Dropout(dropout, Site.EXPERT_HIDDEN)
        self.gate = nn.Parameter(torch.empty(experts, d_ff, d_model)) if is_gated(activation) else None
        self.up = nn.Parameter(torch.empty(experts, d_ff, d_model))
        self.down = nn.Parameter(torch.empty(experts, d_model, d_ff))

    def forward(self, x_ND: Tensor, count_E: Tensor, key_N: Tensor | None) -> Tensor:
        """Apply each expert to its assignments.

        Args:
            x_ND: Inputs, sorted by expert.
            count_E: int64, number of assignments of each expert; they sum to N.
            key_N: int64, dropout key of each assignment; None: no dropout.

        Returns:
            y_ND, in the same order.
        """
        if self.backend == "grouped":
            return grouped_mlp(
                x_ND,
                self.gate,
                self.up,
                self.down,
                count_E,
                activation=self.activation,
                key_N=key_N if self.dropout.is_on else None,
                rate=self.dropout.rate_2,
            )
        multiply = _PRODUCTS[self.backend]
        gate_NF = None if self.gate is None else multiply(x_ND, self.gate, count_E)
        h_NF = activate(self.activation, multiply(x_ND, self.up, count_E), gate_NF)
        return multiply(self.dropout.forward_assignments(h_NF, key_N), self.down, count_E)


_PRODUCTS = {"megablocks": megablocks_mm, "loop": one_by_one}
