"""The dense MLP of a layer.

Shapes: B rows, T positions, D width of the residual stream, F hidden units.
"""

from __future__ import annotations

from torch import Tensor, nn

from reptrain.config.model import Activation, is_gated
from reptrain.model.dropout import Dropout, LayerKeys
from reptrain_kernels.ops.gated import activate


class MLP(nn.Module):
    """An MLP with one hidden layer, gated or not.

    Args:
        d_model: D.
        d_ff: F.
        activation: Activation of the hidden units; a gated one has a third projection.
        dropout: Dropout of the hidden units.
        output_mask: Masks the whole output of a position; None: no mask.
        bias: Whether each projection has a bias.

    Source:
        Shazeer, "GLU variants improve transformer", 2020 (the gated forms).
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: Activation,
        dropout: Dropout,
        output_mask: Dropout | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.gate = nn.Linear(d_model, d_ff, bias=bias) if is_gated(activation) else None
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.dropout = dropout
        self.output_mask = output_mask

    def forward(self, x_BTD: Tensor, keys: LayerKeys | None) -> Tensor:
        """Transform each position.

        Args:
            x_BTD: Normalized states.
            keys: Dropout keys of the layer; None: no dropout.

        Returns:
            y_BTD, in the dtype of the weights or of autocast.
        """
        gate_BTF = None if self.gate is None else self.gate(x_BTD)
        key, rate_2 = self.dropout.key_and_rate(keys)
        y_BTD = self.down(activate(self.activation, self.up(x_BTD), gate_BTF, key=key, rate=rate_2))
        return y_BTD if self.output_mask is None else self.output_mask.mask_rows(y_BTD, keys)
