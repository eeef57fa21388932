"""The hidden units of an MLP: an activation, gated or not, and dropout by counter, in one pass.

    h[p, f] = act(gate[p, f]) up[p, f], or act(up[p, f]) without a gate; then `counter.dropout`

Source:
    Shazeer, "GLU variants improve transformer", 2020. GELU is the form approximated by tanh (Hendrycks &
    Gimpel, "Gaussian error linear units", 2016).
"""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from reptrain_kernels import counter, rates
from reptrain_kernels.implementation import Implementation, choose_implementation
from reptrain_kernels.ops.gated.reference import GATED, Activation, activate_reference

__all__ = ["GATED", "Activation", "activate"]


def activate(
    activation: Activation,
    up: Tensor,
    gate: Tensor | None = None,
    *,
    key: Tensor | None = None,
    rate: rates.Rate = 0.0,
    impl: Implementation | None = None,
) -> Tensor:
    """Apply an activation to the hidden units of an MLP, with its gate and dropout.

    Args:
        activation: The activation function.
        up: Floating point, shape [..., P, F]: positions and hidden units; without ``key`` any shape.
        gate: The gate projection, of the shape and dtype of ``up``; None if the activation is not gated.
        key: int64, shape [...]: a call key for each leading index (see `counter`), or [..., P]: one for each
            position (see `counter.position_keys`); None: no dropout.
        rate: Probability of dropping a unit, in [0, 1), a number or packed (see `counter.dropout`).
        impl: "torch" or "triton"; None: by the device (see `choose_implementation`). Triton computes in fp32
            and rounds once; torch rounds at each step.

    Returns:
        The shape and dtype of ``up``.

    Raises:
        ValueError: If shapes, dtypes or the activation do not match.
    """
    if counter.has_position_keys(key, up):
        gate = None if gate is None else gate.unsqueeze(-2)
        return activate(activation, up.unsqueeze(-2), gate, key=key, rate=rate, impl=impl).squeeze(-2)
    _check(activation, up, gate, key)
    key, rate_2 = counter.key_and_rate(key, rate)
    if choose_implementation(up.device, impl) == "torch":
        return activate_reference(activation, up, gate, key, rate_2)
    from reptrain_kernels.ops.gated.triton import gated_forward

    return gated_forward(up, gate, key, rate_2, activation)


def _check(activation: Activation, up: Tensor, gate: Tensor | None, key: Tensor | None) -> None:
    if activation not in get_args(Activation):
        raise ValueError(f"activation: must be one of {get_args(Activation)}, but got {activation!r}")
    if (gate is not None) != (activation in GATED):
        raise ValueError(
            f"gate: must be given for {' and '.join(GATED)} only, but the activation is {activation}"
        )
    if gate is not None and (gate.shape != up.shape or gate.dtype != up.dtype):
        raise ValueError(
            f"gate: must be {up.dtype} of {tuple(up.shape)} as up is, "
            f"but got {gate.dtype} of {tuple(gate.shape)}"
        )
    if key is not None:
        counter.check_key("key", key, up)
