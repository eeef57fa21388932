"""Products of many matrices with as many groups of rows, in one call.

Shapes: N rows, sorted by group, E groups, I columns of the rows, O columns of the result.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_mm(x_NI: Tensor, weight_EOI: Tensor, count_E: Tensor) -> Tensor:
    """Each group's rows times the transpose of its matrix.

    torch's own grouped product, behind an operation that torch.compile takes whole in any dtype (torch 2.13
    knows the shape of it in bf16 alone) and whose gradient may have any strides.

    Args:
        x_NI: fp32, bf16 or fp16. I is a multiple of 16 bytes.
        weight_EOI: The same dtype. O is a multiple of 16 bytes.
        count_E: int64, rows of each group; together N.

    Returns:
        y_NO, of the same dtype.
    """
    return _grouped_mm(x_NI, weight_EOI, count_E.cumsum(0).to(torch.int32))


@torch.library.custom_op("reptrain::grouped_mm", mutates_args=())
def _grouped_mm(x_NI: Tensor, weight_EOI: Tensor, end_E: Tensor) -> Tensor:
    return F.grouped_mm(x_NI.contiguous(), weight_EOI.transpose(1, 2), offs=end_E)


@_grouped_mm.register_fake
def _(x_NI: Tensor, weight_EOI: Tensor, end_E: Tensor) -> Tensor:
    return x_NI.new_empty(x_NI.shape[0], weight_EOI.shape[1])


@torch.library.custom_op("reptrain::grouped_mm_backward", mutates_args=())
def _grouped_mm_backward(
    dy_NO: Tensor, x_NI: Tensor, weight_EOI: Tensor, end_E: Tensor
) -> tuple[Tensor, Tensor]:
    """dx = dy W, and dW = dy^T x within each group."""
    dy_NO, x_NI = dy_NO.contiguous(), x_NI.contiguous()
    dx_NI = F.grouped_mm(dy_NO, weight_EOI.contiguous(), offs=end_E)
    return dx_NI, F.grouped_mm(dy_NO.T, x_NI, offs=end_E)


@_grouped_mm_backward.register_fake
def _(dy_NO: Tensor, x_NI: Tensor, weight_EOI: Tensor, end_E: Tensor) -> tuple[Tensor, Tensor]:
    return x_NI.new_empty(x_NI.shape), weight_EOI.new_empty(weight_EOI.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy_NO: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_grouped_mm_backward(dy_NO, *ctx.saved_tensors), None


_grouped_mm.register_autograd(_backward, setup_context=_setup)
