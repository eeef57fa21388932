"""`rope.rotate` in Triton, registered as a torch operator: torch.compile does not break the graph at it.

The backward pass is the same kernel with the opposite sign: it rotates the gradients back.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reptrain_kernels.operator import Operator

# Eight pairs per thread of four warps: 16 bytes of bf16 from each half of a head.
BLOCK_PAIRS = 1024


@triton.jit
def _rotate(
    x_ptr, y_ptr, cos_ptr, sin_ptr, block, num_lines, num_positions, num_heads, row_stride, position_stride,
    head_stride, angle_stride, sign, M: tl.constexpr, BLOCK_LINES: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Rotate a block of lines (heads of positions). x has a contiguous last axis; y is contiguous."""
    line, pair = block * BLOCK_LINES + tl.arange(0, BLOCK_LINES), tl.arange(0, BLOCK_M)
    place, head = line // num_heads, line % num_heads
    row, position = (place // num_positions).to(tl.int64), place % num_positions
    inside = (line < num_lines)[:, None] & (pair < M)[None, :]
    angle = (row * angle_stride + position * M)[:, None] + pair[None, :]
    cos = tl.load(cos_ptr + angle, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle, mask=inside, other=0.0).to(tl.float32) * sign
    start = row * row_stride + position.to(tl.int64) * position_stride + head * head_stride
    read = x_ptr + start[:, None] + pair[None, :]
    a = tl.load(read, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(read + M, mask=inside, other=0.0).to(tl.float32)
    written = y_ptr + (line.to(tl.int64) * 2 * M)[:, None] + pair[None, :]
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    tl.store(written, (a * cos - b * sin).to(dtype), mask=inside)
    tl.store(written + M, (b * cos + a * sin).to(dtype), mask=inside)


@triton.jit(do_not_specialize=["num_query_blocks", "num_rows", "num_positions", "num_heads", "num_key_heads"])
def rotate_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, rotated_q_ptr, rotated_k_ptr, num_query_blocks, num_rows, num_positions,
    num_heads, num_key_heads, q_row, q_position, q_head, k_row, k_position, k_head, angle_stride, sign,
    M: tl.constexpr, BLOCK_LINES: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The first programs rotate queries, the others keys."""
    block = tl.program_id(0)
    if block < num_query_blocks:
        _rotate(
            q_ptr, rotated_q_ptr, cos_ptr, sin_ptr, block, num_rows * num_positions * num_heads,
            num_positions, num_heads, q_row, q_position, q_head, angle_stride, sign, M, BLOCK_LINES, BLOCK_M,
        )  # fmt: skip
    else:
        _rotate(
            k_ptr, rotated_k_ptr, cos_ptr, sin_ptr, block - num_query_blocks,
            num_rows * num_positions * num_key_heads, num_positions, num_key_heads, k_row, k_position, k_head,
            angle_stride, sign, M, BLOCK_LINES, BLOCK_M,
        )  # fmt: skip


def _readable(x: Tensor) -> Tensor:
    """``x`` with a contiguous last axis."""
    if x.numel() // x.shape[-1] >= 2**31:
        raise ValueError(f"q_BTHN, k_BTKN: must have fewer than 2**31 lines, but got {tuple(x.shape)}")
    return x if x.stride(-1) == 1 else x.contiguous()


def launch_rotate(
    q_BTHN: Tensor, k_BTKN: Tensor, cos_TM: Tensor, sin_TM: Tensor, sign: float
) -> tuple[Tensor, Tensor]:
    """See `rope.rotate`; a sign of -1 rotates back."""
    rotated = _new(q_BTHN), _new(k_BTKN)
    if q_BTHN.numel() + k_BTKN.numel() == 0:
        return rotated
    q, k, cos, sin = _readable(q_BTHN), _readable(k_BTKN), cos_TM.contiguous(), sin_TM.contiguous()
    (B, T, H, N), K = q.shape, k.shape[2]
    block_m = triton.next_power_of_2(N // 2)
    block_lines = max(BLOCK_PAIRS // block_m, 1)
    num_blocks = [triton.cdiv(B * T * heads, block_lines) for heads in (H, K)]
    rotate_kernel[(sum(num_blocks),)](
        q, k, cos, sin, *rotated, num_blocks[0], B, T, H, K, *q.stride()[:3], *k.stride()[:3],
        cos.stride(0) if cos.ndim == 3 else 0, sign, M=N // 2, BLOCK_LINES=block_lines, BLOCK_M=block_m,
    )  # fmt: skip
    return rotated


def _new(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


rotate_both = Operator("reptrain_kernels::rotate", launch_rotate)


@rotate_both.register_fake
def _shapes(q_BTHN: Tensor, k_BTKN: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return _new(q_BTHN), _new(k_BTKN)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[2:4])
    ctx.sign = inputs[4]


def _backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
    return *rotate_both(grad_q, grad_k, *ctx.saved_tensors, -ctx.sign), None, None, None


rotate_both.register_autograd(_backward, setup_context=_keep)
