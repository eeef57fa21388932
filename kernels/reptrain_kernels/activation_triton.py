"""The activations of hidden units in Triton: shared by the kernels that apply them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bend(x, ACTIVATION: tl.constexpr):
    """An activation of fp32 and its derivative; a gated one's is of the gate: silu or GELU.

    GELU is the one approximated by tanh, 0.5 x (1 + tanh u) = x sigmoid(2 u).
    """
    if ACTIVATION == "relu":
        slope = tl.where(x > 0, 1.0, 0.0)
        value = tl.where(x > 0, x, 0.0)
    elif ACTIVATION == "swiglu":
        share = tl.sigmoid(x)
        value = x * share
        slope = share + value * (1 - share)
    else:
        tl.static_assert(ACTIVATION == "gelu" or ACTIVATION == "geglu")
        square = x * x
        share = tl.sigmoid(1.5957691216057308 * x * (1 + 0.044715 * square))
        value = x * share
        slope = share + value * (1 - share) * 1.5957691216057308 * (1 + 3 * 0.044715 * square)
    return value, slope
