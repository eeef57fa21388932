"""The definitions of `grouped_mm` and `grouped_mlp`, in torch's own grouped product."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reptrain_kernels.implementation import Implementation
from reptrain_kernels.operator import Operator
from reptrain_kernels.ops.gated import Activation, activate


def ends(count_E: Tensor) -> Tensor:
    """The row after each group's last, int32, as kernels want it.

    >>> ends(torch.tensor([2, 0, 3])).tolist()
    [2, 2, 5]
    """
    return count_E.cumsum(0).to(torch.int32)


def one_by_one(x_NI: Tensor, weight_EOI: Tensor, count_E: Tensor) -> Tensor:
    """`grouped_mm` spelled out: a product for each group, whose sizes go to the host."""
    parts = x_NI.split(count_E.tolist())
    return torch.cat([part @ weight_OI.T for part, weight_OI in zip(parts, weight_EOI, strict=True)])


def grouped_mm_reference(x_NI: Tensor, weight_EOI: Tensor, count_E: Tensor) -> Tensor:
    """`grouped_mm` by torch's grouped product; float64, which that lacks, group by group."""
    if x_NI.dtype == torch.float64:
        return one_by_one(x_NI, weight_EOI, count_E)
    return _grouped_mm(x_NI, weight_EOI, ends(count_E))


def grouped_mlp_reference(
    x_ND: Tensor,
    gate_EFD: Tensor | None,
    up_EFD: Tensor,
    down_EDF: Tensor,
    count_E: Tensor,
    activation: Activation,
    key_N: Tensor | None,
    rate_2: Tensor | None,
    impl: Implementation | None,
) -> Tensor:
    """Products in torch; the activation between them follows ``impl``."""
    gate_NF = None if gate_EFD is None else grouped_mm_reference(x_ND, gate_EFD, count_E)
    up_NF = grouped_mm_reference(x_ND, up_EFD, count_E)
    # Each row is a position of its own call key.
    gate_N1F = None if gate_NF is None else gate_NF[:, None]
    h_NF = activate(
        activation, up_NF[:, None], gate_N1F, key=key_N, rate=rate_2 if rate_2 is not None else 0.0, impl=impl
    )[:, 0]
    return grouped_mm_reference(h_NF, down_EDF, count_E)


# torch 2.13 knows the shape of its product in bf16 alone, and refuses gradients of expanded strides.
@partial(Operator, "reptrain::grouped_mm")
def _grouped_mm(x_NI: Tensor, weight_EOI: Tensor, end_E: Tensor) -> Tensor:
    return F.grouped_mm(x_NI.contiguous(), weight_EOI.transpose(1, 2), offs=end_E)


@_grouped_mm.register_fake
def _(x_NI: Tensor, weight_EOI: Tensor, end_E: Tensor) -> Tensor:
    return x_NI.new_empty(x_NI.shape[0], weight_EOI.shape[1])


@partial(Operator, "reptrain::grouped_mm_backward")
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
