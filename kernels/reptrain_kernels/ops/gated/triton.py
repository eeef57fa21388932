"""`gated.activate` in Triton, registered as torch operators so that torch.compile does not break the graph
at it.

Neither the dropout mask nor the activated gate is stored: the backward pass recomputes both.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reptrain_kernels.activation_triton import activation_and_slope
from reptrain_kernels.counter_triton import is_kept, line_keys
from reptrain_kernels.layout import contiguous
from reptrain_kernels.operator import Operator
from reptrain_kernels.rates import unpacked

# Eight units per thread (16 bytes of bf16) and few registers: many threads hide the latency of the loads.
BLOCK_LINES = 4
BLOCK_UNITS = 256

_AT_RUN_TIME = ("num_lines", "num_positions", "threshold", "scale")


@triton.jit
def _tile(num_lines, num_units, BLOCK_LINES: tl.constexpr, BLOCK_UNITS: tl.constexpr):
    """The lines and units of a program, their offsets in memory, and the mask of those that exist."""
    line = tl.program_id(0) * BLOCK_LINES + tl.arange(0, BLOCK_LINES)
    unit = tl.program_id(1) * BLOCK_UNITS + tl.arange(0, BLOCK_UNITS)
    at = line[:, None].to(tl.int64) * num_units + unit[None, :]
    return line, unit, at, (line[:, None] < num_lines) & (unit[None, :] < num_units)


@triton.jit
def _drop(x, key_ptr, line, unit, num_lines, num_positions, threshold, scale):
    """`counter.dropout` of a tile."""
    if key_ptr is None:
        return x
    else:
        key = tl.load(key_ptr + line // num_positions, mask=line < num_lines, other=0).to(tl.uint64)
        line_key = line_keys(key, line % num_positions)[:, None]
        return tl.where(is_kept(line_key, unit[None, :], threshold), x * scale, 0.0)


@triton.jit(do_not_specialize=_AT_RUN_TIME)
def gated_kernel(
    up_ptr, gate_ptr, key_ptr, h_ptr, num_lines, num_positions, num_units, threshold, scale,
    ACTIVATION: tl.constexpr, BLOCK_LINES: tl.constexpr, BLOCK_UNITS: tl.constexpr,
):  # fmt: skip
    """A tile of h. All: [num_lines, num_units], contiguous."""
    line, unit, at, inside = _tile(num_lines, num_units, BLOCK_LINES, BLOCK_UNITS)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if gate_ptr is None:
        h = activation_and_slope(up, ACTIVATION)[0]
    else:
        gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
        h = activation_and_slope(gate, ACTIVATION)[0] * up
    h = _drop(h, key_ptr, line, unit, num_lines, num_positions, threshold, scale)
    tl.store(h_ptr + at, h.to(h_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_AT_RUN_TIME)
def gated_gradient_kernel(
    grad_ptr, up_ptr, gate_ptr, key_ptr, grad_up_ptr, grad_gate_ptr, num_lines, num_positions, num_units,
    threshold, scale, ACTIVATION: tl.constexpr, BLOCK_LINES: tl.constexpr, BLOCK_UNITS: tl.constexpr,
):  # fmt: skip
    """A tile of the gradients of up and, where there is one, of the gate."""
    line, unit, at, inside = _tile(num_lines, num_units, BLOCK_LINES, BLOCK_UNITS)
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    grad = _drop(grad, key_ptr, line, unit, num_lines, num_positions, threshold, scale)
    if gate_ptr is None:
        grad_up = grad * activation_and_slope(up, ACTIVATION)[1]
    else:
        gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
        value, slope = activation_and_slope(gate, ACTIVATION)
        grad_gate = grad * up * slope
        tl.store(grad_gate_ptr + at, grad_gate.to(grad_gate_ptr.dtype.element_ty), mask=inside)
        grad_up = grad * value
    tl.store(grad_up_ptr + at, grad_up.to(grad_up_ptr.dtype.element_ty), mask=inside)


def _grid_and_sizes(x: Tensor, key: Tensor | None) -> tuple[tuple[int, int], tuple[int, int, int]]:
    num_units = x.shape[-1]
    num_lines = x.numel() // num_units
    if num_lines >= 2**31:
        raise ValueError(f"up: must have fewer than 2**31 lines, but got {num_lines}")
    grid = (triton.cdiv(num_lines, BLOCK_LINES), triton.cdiv(num_units, BLOCK_UNITS))
    return grid, (num_lines, 1 if key is None else x.shape[-2], num_units)


def launch_forward(
    up: Tensor, gate: Tensor | None, key: Tensor | None, rate_2: Tensor | None, activation: str
) -> Tensor:
    """See `gated.activate`; the rate is packed, and None without keys."""
    up, gate, key = contiguous(up, gate, key)
    h = torch.empty_like(up)
    if h.numel():
        grid, sizes = _grid_and_sizes(up, key)
        gated_kernel[grid](
            up, gate, key, h, *sizes, *unpacked(rate_2), activation, BLOCK_LINES=BLOCK_LINES,
            BLOCK_UNITS=BLOCK_UNITS,
        )  # fmt: skip
    return h


gated_forward = Operator("reptrain_kernels::gated_forward", launch_forward)


@gated_forward.register_fake
def _shape_of_forward(up: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(up, memory_format=torch.contiguous_format)


def launch_backward(
    grad: Tensor,
    up: Tensor,
    gate: Tensor | None,
    key: Tensor | None,
    rate_2: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """The gradients of up and of the gate; the last is empty without a gate."""
    grad, up, gate, key = contiguous(grad, up, gate, key)
    grad_up, grad_gate = torch.empty_like(up), up.new_empty(0 if gate is None else up.shape)
    if up.numel():
        grid, sizes = _grid_and_sizes(up, key)
        gated_gradient_kernel[grid](
            grad, up, gate, key, grad_up, grad_gate, *sizes, *unpacked(rate_2), activation,
            BLOCK_LINES=BLOCK_LINES, BLOCK_UNITS=BLOCK_UNITS,
        )  # fmt: skip
    return grad_up, grad_gate


gated_backward = Operator("reptrain_kernels::gated_backward", launch_backward)


@gated_backward.register_fake
def _shapes_of_backward(grad: Tensor, up: Tensor, gate: Tensor | None, *others: Any) -> tuple[Tensor, Tensor]:
    grad_up = torch.empty_like(up, memory_format=torch.contiguous_format)
    return grad_up, up.new_empty(0 if gate is None else up.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    up, gate, *drops = ctx.saved_tensors
    grad_up, grad_gate = gated_backward(grad, up, gate, *drops, ctx.activation)
    return grad_up, None if gate is None else grad_gate, None, None, None


gated_forward.register_autograd(_backward, setup_context=_keep)
