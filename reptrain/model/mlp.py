"""The gated MLP.

Shapes: B rows, T positions, D width of the residual stream, F hidden units.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from reptrain.config.schema import DecoderConfig
from reptrain.model.dropout import Dropout, Site


class GatedMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), with dropout of the hidden units.

    Args:
        config: The model.
        layer: Number of the block, which keys the dropout.

    Source:
        Shazeer, "GLU variants improve transformer", 2020.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout.mlp, Site.MLP_HIDDEN.number(layer))

    def forward(self, x_BTD: Tensor, key_B: Tensor | None) -> Tensor:
        """Transform each position; ``key_B`` are the rows' dropout keys, None drops nothing."""
        h_BTF = F.silu(self.gate(x_BTD)) * self.up(x_BTD)
        return self.down(self.dropout(h_BTF, key_B))
