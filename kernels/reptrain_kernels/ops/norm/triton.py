"""`norm` in Triton, registered as torch operators: torch.compile does not break the graph at them.

A *line* is a position of a row; a program holds a whole line in registers. Dropout masks are not stored: the
backward pass recomputes them. It reads the residual stream, and one number per line, the inverse root mean
square. An argument that is None switches its feature off at compile time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reptrain_kernels.counter_triton import is_kept, line_keys
from reptrain_kernels.layout import contiguous
from reptrain_kernels.operator import Operator
from reptrain_kernels.rates import unpacked

MAX_WIDTH = 8192
"""Largest number of units of a line: more would not fit into registers."""

# Four per multiprocessor of an A100. Fixed, so that every device splits the sums in the same way.
MAX_GRADIENT_BLOCKS = 432
_MIN_LINES_OF_GRADIENT_BLOCK = 4

_AT_RUN_TIME = (
    "num_lines", "block_lines", "num_positions", "threshold", "scale", "path_threshold", "path_scale", "eps",
)  # fmt: skip


@triton.jit
def _is_path_kept(path_key_ptr, row, threshold):
    """Whether a row keeps its branch (DropPath): the mask of unit 0 at position 0."""
    zero = tl.full((), 0, tl.int32)
    return is_kept(line_keys(tl.load(path_key_ptr + row).to(tl.uint64), zero), zero, threshold)


@triton.jit
def _dropped(
    x, unit_key_ptr, path_key_ptr, line, unit, num_positions, threshold, scale, path_threshold, path_scale,
    dtype: tl.constexpr,
):  # fmt: skip
    """Dropout and DropPath of an fp32 line; each product is rounded to ``dtype``, as torch does."""
    row, position = line // num_positions, line % num_positions
    if unit_key_ptr is not None:
        line_key = line_keys(tl.load(unit_key_ptr + row).to(tl.uint64), position)
        x = tl.where(is_kept(line_key, unit, threshold), x * scale, 0.0).to(dtype).to(tl.float32)
    if path_key_ptr is not None:
        factor = tl.full((), path_scale, tl.float32).to(dtype).to(tl.float32)
        is_path_kept = _is_path_kept(path_key_ptr, row, path_threshold)
        x = tl.where(is_path_kept, (x * factor).to(dtype).to(tl.float32), 0.0)
    return x


@triton.jit(do_not_specialize=_AT_RUN_TIME)
def join_norm_kernel(
    x_ptr, branch_ptr, weight_ptr, unit_key_ptr, path_key_ptr, stream_ptr, normed_ptr, rstd_ptr,
    num_positions, width, threshold, scale, path_threshold, path_scale, eps, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """stream = x + dropout(branch), or one of them if the other is None; with weights also its RMS norm.

    A program handles a line; without weights, a block of its units. Tensors are [num_lines, width],
    contiguous; rstd is [num_lines].
    """
    line, unit = tl.program_id(0), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    at, inside = line.to(tl.int64) * width + unit, unit < width
    if branch_ptr is None:
        stream = tl.load(x_ptr + at, mask=inside, other=0.0)
    else:
        dtype: tl.constexpr = branch_ptr.dtype.element_ty
        read = inside
        if path_key_ptr is not None:
            read = inside & _is_path_kept(path_key_ptr, line // num_positions, path_threshold)
        branch = tl.load(branch_ptr + at, mask=read, other=0.0).to(tl.float32)
        joined = _dropped(
            branch, unit_key_ptr, path_key_ptr, line, unit, num_positions, threshold, scale, path_threshold,
            path_scale, dtype,
        )  # fmt: skip
        if x_ptr is not None:
            joined += tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        stream = joined.to(stream_ptr.dtype.element_ty)
        tl.store(stream_ptr + at, stream, mask=inside)
    if weight_ptr is not None:
        full = stream.to(tl.float32)
        rstd = tl.rsqrt(tl.sum(full * full, 0) / width + eps)
        tl.store(rstd_ptr + line, rstd)
        weight = tl.load(weight_ptr + unit, mask=inside, other=0.0).to(tl.float32)
        normed = (full * rstd).to(stream.dtype).to(tl.float32) * weight
        tl.store(normed_ptr + at, normed.to(normed_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_AT_RUN_TIME)
def norm_gradient_kernel(
    grad_stream_ptr, grad_normed_ptr, stream_ptr, weight_ptr, rstd_ptr, unit_key_ptr, path_key_ptr,
    grad_x_ptr, grad_branch_ptr, partial_ptr, num_lines, block_lines, num_positions, width, threshold, scale,
    path_threshold, path_scale, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradients of x and branch for a block of lines, and the block's partial sum of the weight gradient.

    Tensors are [num_lines, width], contiguous; partial is [programs, width].
    """
    unit = tl.arange(0, BLOCK_D)
    inside = unit < width
    weight = tl.load(weight_ptr + unit, mask=inside, other=0.0).to(tl.float32)
    grad_weight = tl.zeros([BLOCK_D], dtype=tl.float32)
    first = tl.program_id(0) * block_lines
    for step in range(tl.minimum(block_lines, num_lines - first)):
        line = first + step
        at = line.to(tl.int64) * width + unit
        rstd = tl.load(rstd_ptr + line)
        normed = tl.load(stream_ptr + at, mask=inside, other=0.0).to(tl.float32) * rstd
        grad = tl.load(grad_normed_ptr + at, mask=inside, other=0.0).to(tl.float32)
        grad_weight += grad * normed
        grad *= weight
        grad = (grad - normed * (tl.sum(grad * normed, 0) / width)) * rstd
        if grad_stream_ptr is not None:
            grad += tl.load(grad_stream_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_x_ptr + at, grad.to(grad_x_ptr.dtype.element_ty), mask=inside)
        if grad_branch_ptr is not None:
            dtype: tl.constexpr = grad_branch_ptr.dtype.element_ty
            grad = _dropped(
                grad, unit_key_ptr, path_key_ptr, line, unit, num_positions, threshold, scale, path_threshold,
                path_scale, dtype,
            )  # fmt: skip
            tl.store(grad_branch_ptr + at, grad.to(dtype), mask=inside)
    tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * width + unit, grad_weight, mask=inside)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Number of lines, positions of a row, and width."""
    width = x.shape[-1]
    if width > MAX_WIDTH:
        raise ValueError(f"x: must have at most {MAX_WIDTH} units for Triton, but got {width}")
    num_lines = x.numel() // width
    if num_lines >= 2**31:
        raise ValueError(f"x: must have fewer than 2**31 lines, but got {num_lines}")
    return num_lines, x.shape[-2] if x.ndim > 1 else 1, width


def norm_block(width: int, *, max_warps: int) -> dict[str, int]:
    """Block and warps of a line: eight units per thread (16 bytes of bf16), more beyond ``max_warps``."""
    block = triton.next_power_of_2(width)
    return {"BLOCK_D": block, "num_warps": min(max(block // 256, 1), max_warps)}


def gradient_blocks(num_lines: int) -> tuple[int, int]:
    """Number of blocks of lines in the backward pass, and the lines of each but the last."""
    block_lines = max(_MIN_LINES_OF_GRADIENT_BLOCK, triton.cdiv(num_lines, MAX_GRADIENT_BLOCKS))
    return triton.cdiv(num_lines, block_lines), block_lines


def launch_norm(
    x: Tensor,
    branch: Tensor | None,
    weight_D: Tensor,
    unit_key_B: Tensor | None,
    unit_rate_2: Tensor | None,
    path_key_B: Tensor | None,
    path_rate_2: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `norm.join_and_norm`; rates are packed.

    Returns:
        The residual stream, empty without a branch (it would be x); the normalized lines; and the inverse
        root mean square of each line, in fp32.
    """
    x, branch, weight_D, unit_key_B, path_key_B = contiguous(x, branch, weight_D, unit_key_B, path_key_B)
    results = _new_results(x, branch, weight_D)
    if x.numel():
        num_lines, *sizes = _sizes(x)
        numbers = (*unpacked(unit_rate_2), *unpacked(path_rate_2), eps)
        join_norm_kernel[(num_lines,)](
            x, branch, weight_D, unit_key_B, path_key_B, *results, *sizes, *numbers,
            **norm_block(sizes[1], max_warps=32),
        )  # fmt: skip
    return results


def _new_results(x: Tensor, branch: Tensor | None, weight_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    stream = x if branch is None else x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype))
    normed = x.new_empty(x.shape, dtype=torch.promote_types(stream.dtype, weight_D.dtype))
    rstd = x.new_empty(x.shape[:-1], dtype=torch.float32)
    return x.new_empty(0) if branch is None else stream, normed, rstd


norm_forward = Operator("reptrain_kernels::norm_forward", launch_norm)


@norm_forward.register_fake
def _shapes_of_norm(
    x: Tensor, branch: Tensor | None, weight_D: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _new_results(x, branch, weight_D)


def launch_norm_gradient(
    grad_stream: Tensor | None,
    grad_normed: Tensor,
    stream: Tensor,
    weight_D: Tensor,
    rstd: Tensor,
    branch_dtype: torch.dtype | None,
    unit_key_B: Tensor | None,
    unit_rate_2: Tensor | None,
    path_key_B: Tensor | None,
    path_rate_2: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, in the stream's dtype, of the branch, and of the weight in fp32.

    Args:
        grad_stream: None where the stream was an input.
        branch_dtype: None where there is no branch, or where its gradient is that of x: the second result is
            then empty.
    """
    grad_stream, grad_normed, stream, weight_D = contiguous(grad_stream, grad_normed, stream, weight_D)
    unit_key_B, path_key_B = contiguous(unit_key_B, path_key_B)
    grad_x, grad_branch = _new_gradients(stream, branch_dtype)
    if stream.numel() == 0:
        return grad_x, grad_branch, weight_D.new_zeros(weight_D.shape, dtype=torch.float32)
    num_lines, *sizes = _sizes(stream)
    num_blocks, block_lines = gradient_blocks(num_lines)
    partial = stream.new_empty(num_blocks, sizes[1], dtype=torch.float32)
    norm_gradient_kernel[(num_blocks,)](
        grad_stream, grad_normed, stream, weight_D, rstd, unit_key_B, path_key_B, grad_x,
        None if branch_dtype is None else grad_branch, partial, num_lines, block_lines, *sizes,
        *unpacked(unit_rate_2), *unpacked(path_rate_2), **norm_block(sizes[1], max_warps=16),
    )  # fmt: skip
    return grad_x, grad_branch, partial.sum(0)


def _new_gradients(stream: Tensor, branch_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    shape = (0,) if branch_dtype is None else stream.shape
    return stream.new_empty(stream.shape), stream.new_empty(shape, dtype=branch_dtype)


norm_backward = Operator("reptrain_kernels::norm_backward", launch_norm_gradient)


@norm_backward.register_fake
def _shapes_of_norm_gradient(
    grad_stream: Tensor | None,
    grad_normed: Tensor,
    stream: Tensor,
    weight_D: Tensor,
    rstd: Tensor,
    branch_dtype: torch.dtype | None,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return *_new_gradients(stream, branch_dtype), weight_D.new_empty(weight_D.shape, dtype=torch.float32)


def _keep_for_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, branch, weight_D, *drops = inputs[:-1]
    stream, _, rstd = output
    ctx.save_for_backward(x if branch is None else stream, weight_D, rstd, *drops)
    ctx.branch_dtype = None if branch is None else branch.dtype
    ctx.mark_non_differentiable(rstd)
    ctx.set_materialize_grads(False)  # No zeros for results without a gradient.


def _backward_of_norm(
    ctx: Any, grad_stream: Tensor | None, grad_normed: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    stream, weight_D, rstd, *drops = ctx.saved_tensors
    if grad_normed is None:
        grad_normed = torch.zeros_like(stream, dtype=torch.promote_types(stream.dtype, weight_D.dtype))
    has_branch = ctx.branch_dtype is not None
    drops_some = any(x is not None for x in drops)
    grad_x, grad_branch, grad_weight = norm_backward(
        grad_stream if has_branch else None,
        grad_normed,
        stream,
        weight_D,
        rstd,
        ctx.branch_dtype if drops_some else None,
        *drops,
    )
    if has_branch and not drops_some:
        grad_branch = grad_x
    return grad_x, grad_branch if has_branch else None, grad_weight.to(weight_D.dtype), *(None,) * 5


norm_forward.register_autograd(_backward_of_norm, setup_context=_keep_for_norm)


def launch_join(
    x: Tensor | None,
    branch: Tensor,
    unit_key_B: Tensor | None,
    unit_rate_2: Tensor | None,
    path_key_B: Tensor | None,
    path_rate_2: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """x and the dropped branch, or that alone, in ``dtype``."""
    x, branch, unit_key_B, path_key_B = contiguous(x, branch, unit_key_B, path_key_B)
    stream = branch.new_empty(branch.shape, dtype=dtype)
    if stream.numel():
        num_lines, *sizes = _sizes(branch)
        numbers = (*unpacked(unit_rate_2), *unpacked(path_rate_2), 0.0)
        # A warp has 256 units, which divide the widths in use.
        join_norm_kernel[(num_lines, triton.cdiv(sizes[1], 256))](
            x, branch, None, unit_key_B, path_key_B, stream, None, None, *sizes, *numbers, BLOCK_D=256,
            num_warps=1,
        )  # fmt: skip
    return stream


join_forward = Operator("reptrain_kernels::join_forward", launch_join)


@join_forward.register_fake
def _shape_of_join(x: Tensor | None, branch: Tensor, *others: Any) -> Tensor:
    return branch.new_empty(branch.shape, dtype=others[-1])


def _keep_for_join(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[2:6])
    ctx.has_stream, ctx.branch_dtype = inputs[0] is not None, inputs[1].dtype


def _backward_of_join(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Linear in the branch: its gradient is the same function of the gradient.
    grad_branch = join_forward(None, grad, *ctx.saved_tensors, ctx.branch_dtype)
    return grad if ctx.has_stream else None, grad_branch, *(None,) * 5


join_forward.register_autograd(_backward_of_join, setup_context=_keep_for_join)
