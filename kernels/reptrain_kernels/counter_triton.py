"""`counter.dropout` and `counter.jitter` in Triton, registered as torch operators for torch.compile.

Keys and words have the layout of `counter`; tests check that the results of dropout are equal bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reptrain_kernels.operator import Operator
from reptrain_kernels.rates import unpacked

# 32 registers on sm_80 and sm_90: eight units to a thread, so that many threads hide the loads.
BLOCK_LINES = 4
BLOCK_UNITS = 256


@triton.jit
def mix32(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def mix64(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def line_keys(key, position):
    """The keys of a call key's positions."""
    return mix64((key ^ position.to(tl.uint64)) + 0x9E3779B97F4A7C15)


@triton.jit
def unit_words(line_key, unit):
    """The random word of a unit of a line: `counter.random_words`."""
    low, high = line_key.to(tl.uint32), (line_key >> 32).to(tl.uint32)
    return mix32((unit.to(tl.uint32) ^ low) * (high | 1)).to(tl.int32, bitcast=True)


@triton.jit
def is_kept(line_key, unit, threshold):
    """Whether a unit of a line is kept: its word against the threshold."""
    return unit_words(line_key, unit) >= threshold


@triton.jit
def _tile(key_ptr, num_lines, num_positions, num_units, BLOCK_LINES: tl.constexpr, BLOCK_UNITS: tl.constexpr):
    """The keys of a program's lines, its units, and which elements exist, with their offsets."""
    line = tl.program_id(0) * BLOCK_LINES + tl.arange(0, BLOCK_LINES)
    unit = tl.program_id(1) * BLOCK_UNITS + tl.arange(0, BLOCK_UNITS)[None, :]
    key = tl.load(key_ptr + line // num_positions, mask=line < num_lines, other=0).to(tl.uint64)
    line_key = line_keys(key, line % num_positions)[:, None]
    line = line[:, None]
    inside = (line < num_lines) & (unit < num_units)
    return line_key, unit, inside, line.to(tl.int64) * num_units + unit


# The rate comes as numbers known at run time: no value of it may start a new compilation.
@triton.jit(do_not_specialize=["num_lines", "num_positions", "threshold", "scale"])
def dropout_kernel(
    x_ptr,
    key_ptr,
    y_ptr,
    num_lines,
    num_positions,
    num_units,
    threshold,
    scale,
    BLOCK_LINES: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
):
    """One tile of lines (key and position) by units. x and y: [num_lines, num_units], contiguous."""
    line_key, unit, inside, offset = _tile(
        key_ptr, num_lines, num_positions, num_units, BLOCK_LINES, BLOCK_UNITS
    )
    keep = is_kept(line_key, unit, threshold)
    # Dropped units are read too: a mask that differs from unit to unit would split the loads.
    x = tl.load(x_ptr + offset, mask=inside, other=0.0)
    y = tl.where(keep, x.to(tl.float32) * scale, 0.0)
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_lines", "num_positions", "scale"])
def jitter_kernel(
    x_ptr,
    key_ptr,
    y_ptr,
    num_lines,
    num_positions,
    num_units,
    scale,
    BLOCK_LINES: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
):
    """One tile as in `dropout_kernel`: each unit times 1 + scale word."""
    line_key, unit, inside, offset = _tile(
        key_ptr, num_lines, num_positions, num_units, BLOCK_LINES, BLOCK_UNITS
    )
    word = unit_words(line_key, unit)
    x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    y = x * (1.0 + scale * word.to(tl.float32))
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=inside)


def launch_dropout(x: Tensor, key: Tensor, rate_2: Tensor) -> Tensor:
    """See `counter.dropout`; the rate is packed."""
    return _launch(dropout_kernel, x, key, *unpacked(rate_2))


def launch_jitter(x: Tensor, key: Tensor, amount: float) -> Tensor:
    """See `counter.jitter`."""
    return _launch(jitter_kernel, x, key, amount * 2.0**-31)


def _launch(kernel: Any, x: Tensor, key: Tensor, *numbers: float) -> Tensor:
    """The result of a kernel for each unit of ``x``, whose arguments end with ``numbers``."""
    x, key = x.contiguous(), key.contiguous()
    y = torch.empty_like(x)
    if y.numel() == 0:
        return y
    num_positions, num_units = x.shape[-2:]
    num_lines = x.numel() // num_units
    if num_lines >= 2**31:
        raise ValueError(f"x: must have fewer than 2**31 lines, but got {num_lines}")
    grid = (triton.cdiv(num_lines, BLOCK_LINES), triton.cdiv(num_units, BLOCK_UNITS))
    kernel[grid](
        x,
        key,
        y,
        num_lines,
        num_positions,
        num_units,
        *numbers,
        BLOCK_LINES=BLOCK_LINES,
        BLOCK_UNITS=BLOCK_UNITS,
    )
    return y


counter_dropout = Operator("reptrain_kernels::counter_dropout", launch_dropout)


@counter_dropout.register_fake
def _shape_of_result(x: Tensor, key: Tensor, rate_2: Tensor | float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_key_and_rate(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return counter_dropout(grad, *ctx.saved_tensors), None, None


counter_dropout.register_autograd(_backward, setup_context=_keep_key_and_rate)


counter_jitter = Operator("reptrain_kernels::counter_jitter", launch_jitter)
counter_jitter.register_fake(_shape_of_result)


def _keep_key_and_amount(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.amount = inputs[2]


def _backward_of_jitter(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return counter_jitter(grad, *ctx.saved_tensors, ctx.amount), None, None


counter_jitter.register_autograd(_backward_of_jitter, setup_context=_keep_key_and_amount)
