"""The definition of `activate` in plain torch."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from reptrain_kernels import counter

Activation = Literal["swiglu", "geglu", "gelu", "relu"]
"""Activation of the hidden units."""
GATED: tuple[Activation, ...] = ("swiglu", "geglu")
"""Those with a gate: SiLU, and GELU."""


def activate_reference(
    activation: Activation, up: Tensor, gate: Tensor | None, key: Tensor | None, rate_2: Tensor | None
) -> Tensor:
    """The definition in plain torch."""
    if gate is None:
        h = F.relu(up) if activation == "relu" else F.gelu(up, approximate="tanh")
    else:
        h = (F.silu(gate) if activation == "swiglu" else F.gelu(gate, approximate="tanh")) * up
    return h if key is None or rate_2 is None else counter.dropout(h, key, rate_2, impl="torch")
