"""T5's MLP, gated in 1.1 and plain in 1.0.

Shapes: B rows, T positions, D width of the residual stream, F hidden units.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from reptrain.config.schema import T5Config
from reptrain.model.dropout import Dropout, Site


class T5MLP(nn.Module):
    """down(gelu(gate(x)) * up(x)), or down(relu(up(x))), with dropout of the hidden units.

    Args:
        config: The model.
        layer: Number of the block, which keys the dropout.

    Source:
        Shazeer, "GLU variants improve transformer", 2020; Raffel et al. 2020, section 2.1.
    """

    def __init__(self, config: T5Config, layer: int) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=False) if config.mlp == "geglu" else None
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout.mlp, Site.MLP_HIDDEN.number(layer))

    def forward(self, x_BTD: Tensor, key_B: Tensor | None) -> Tensor:
        """Transform each position; ``key_B`` are the rows' dropout keys, None drops nothing."""
        h_BTF = self.up(x_BTD)
        h_BTF = F.relu(h_BTF) if self.gate is None else F.gelu(self.gate(x_BTD), approximate="tanh") * h_BTF
        return self.down(self.dropout(h_BTF, key_B))
