"""Activation functions in Triton, for the kernels of the MLP."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activation_and_slope(x, ACTIVATION: tl.constexpr):
    """An activation function of an fp32 tile, and its derivative.

    Of a gated activation, the function of the gate: SiLU or GELU. GELU is the tanh approximation,
    0.5 x (1 + tanh u) = x sigmoid(2 u).
    """
    if ACTIVATION == "relu":
        slope = tl.where(x > 0, 1.0, 0.0)
        value = tl.where(x > 0, x, 0.0)
    elif ACTIVATION == "swiglu":
        sigmoid = tl.sigmoid(x)
        value = x * sigmoid
        slope = sigmoid + value * (1 - sigmoid)
    else:
        tl.static_assert(ACTIVATION == "gelu" or ACTIVATION == "geglu")
        square = x * x
        sigmoid = tl.sigmoid(1.5957691216057308 * x * (1 + 0.044715 * square))
        value = x * sigmoid
        slope = sigmoid + value * (1 - sigmoid) * 1.5957691216057308 * (1 + 3 * 0.044715 * square)
    return value, slope
