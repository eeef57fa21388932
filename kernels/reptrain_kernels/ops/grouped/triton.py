"""`grouped_mm` and `grouped_mlp` in Triton, torch operators at which torch.compile does not break the graph.

Shapes as in `grouped`; end_E is int32, the end of each group's rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from reptrain_kernels.implementation import capability, matmul_precision
from reptrain_kernels.operator import Operator
from reptrain_kernels.ops.grouped import kernels
from reptrain_kernels.ops.grouped.tiles import Kernel, Tiles, grouped_tiles
from reptrain_kernels.rates import unpacked


def _tiles(which: Kernel, x: Tensor) -> Tiles:
    return grouped_tiles(which, x.element_size(), capability(x.device))


def launch_rows(
    kernel: Any, tiles: Tiles, pointers: tuple[Tensor | None, ...], numbers: tuple[Any, ...], end_E: Tensor,
    num_units: int, num_columns: int, **constants: Any,
) -> None:  # fmt: skip
    """Launch a kernel whose programs each hold some rows of one group."""
    num_rows, num_groups = pointers[0].shape[0], len(end_E)
    # As many as there can be: each group but the first may begin one more.
    num_line_tiles = triton.cdiv(num_rows, tiles.lines) + num_groups - 1
    kernel[(num_line_tiles * triton.cdiv(num_columns, tiles.columns),)](
        *pointers, end_E, num_line_tiles, num_groups, num_units, num_columns, *numbers, **constants,
        BLOCK_E=triton.next_power_of_2(num_groups), BLOCK_M=tiles.lines, BLOCK_N=tiles.columns,
        BLOCK_K=tiles.depth, EVEN=num_units % tiles.depth == 0,
        EVEN_COLUMNS=num_columns % tiles.columns == 0, PRECISION=matmul_precision(pointers[0].dtype),
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip


def launch_product(x_NI: Tensor, weight_EOI: Tensor, end_E: Tensor) -> Tensor:
    """y_NO: each group's rows times its matrix transposed. All contiguous, as everywhere here."""
    y_NO = x_NI.new_empty(len(x_NI), weight_EOI.shape[1])
    if y_NO.numel() > 0:
        launch_rows(
            kernels.product_kernel, _tiles("product", x_NI), (x_NI, weight_EOI, y_NO), (), end_E,
            *weight_EOI.shape[:0:-1],
        )  # fmt: skip
    return y_NO


def launch_row_gradient(
    dy_NO: Tensor,
    weight_EOI: Tensor,
    end_E: Tensor,
    other_dy_NO: Tensor | None = None,
    other_weight_EOI: Tensor | None = None,
) -> Tensor:
    """dx_NI = dy W, and that of a second product of the same rows added."""
    dx_NI = dy_NO.new_empty(len(dy_NO), weight_EOI.shape[2])
    if dx_NI.numel() > 0:
        launch_rows(
            kernels.row_gradient_kernel, _tiles("row_gradient", dy_NO),
            (dy_NO, weight_EOI, other_dy_NO, other_weight_EOI, dx_NI), (), end_E, *weight_EOI.shape[1:],
        )  # fmt: skip
    return dx_NI


def launch_weight_gradient(dy_NO: Tensor, x_NI: Tensor, end_E: Tensor) -> Tensor:
    """dW_EOI = dy^T x within each group: zeros for a group without rows."""
    (_, num_lines), (_, num_columns) = dy_NO.shape, x_NI.shape
    dweight_EOI = x_NI.new_empty(len(end_E), num_lines, num_columns)
    if dweight_EOI.numel() == 0:
        return dweight_EOI
    tiles = _tiles("weight_gradient", x_NI)
    num_tiles = triton.cdiv(num_lines, tiles.lines) * triton.cdiv(num_columns, tiles.columns)
    kernels.weight_gradient_kernel[(num_tiles, len(end_E))](
        dy_NO, x_NI, dweight_EOI, end_E, num_lines, num_columns, BLOCK_M=tiles.lines, BLOCK_N=tiles.columns,
        BLOCK_K=tiles.depth, EVEN_LINES=num_lines % tiles.lines == 0,
        EVEN_COLUMNS=num_columns % tiles.columns == 0, PRECISION=matmul_precision(x_NI.dtype),
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return dweight_EOI


def launch_mm(x_NI: Tensor, weight_EOI: Tensor, end_E: Tensor) -> Tensor:
    """See `grouped.grouped_mm`."""
    return launch_product(x_NI.contiguous(), weight_EOI.contiguous(), end_E)


def launch_mm_backward(
    dy_NO: Tensor, x_NI: Tensor, weight_EOI: Tensor, end_E: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of rows and matrices."""
    dy_NO, x_NI, weight_EOI = (x.contiguous() for x in (dy_NO, x_NI, weight_EOI))
    return launch_row_gradient(dy_NO, weight_EOI, end_E), launch_weight_gradient(dy_NO, x_NI, end_E)


grouped_mm = Operator("reptrain_kernels::grouped_mm", launch_mm)
grouped_mm_backward = Operator("reptrain_kernels::grouped_mm_backward", launch_mm_backward)


@grouped_mm.register_fake
def _shape_of_product(x_NI: Tensor, weight_EOI: Tensor, end_E: Tensor) -> Tensor:
    return x_NI.new_empty(x_NI.shape[0], weight_EOI.shape[1])


@grouped_mm_backward.register_fake
def _shapes_of_gradients(
    dy_NO: Tensor, x_NI: Tensor, weight_EOI: Tensor, end_E: Tensor
) -> tuple[Tensor, Tensor]:
    return x_NI.new_empty(x_NI.shape), weight_EOI.new_empty(weight_EOI.shape)


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _mm_backward(ctx: Any, dy_NO: Tensor) -> tuple[Tensor, Tensor, None]:
    return *grouped_mm_backward(dy_NO, *ctx.saved_tensors), None


grouped_mm.register_autograd(_mm_backward, setup_context=_keep_inputs)


def launch_mlp(
    x_ND: Tensor,
    gate_EFD: Tensor | None,
    up_EFD: Tensor,
    down_EDF: Tensor,
    end_E: Tensor,
    key_N: Tensor | None,
    rate_2: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `grouped.grouped_mlp`; the rate is packed, and None without keys.

    Returns:
        y_ND, h_NF, and for the backward pass up_NF and gate_NF, which is empty without a gate.
    """
    x_ND, up_EFD, down_EDF = (x.contiguous() for x in (x_ND, up_EFD, down_EDF))
    h_NF = x_ND.new_empty(len(x_ND), up_EFD.shape[1])
    up_NF, gate_NF = torch.empty_like(h_NF), h_NF.new_empty(0 if gate_EFD is None else h_NF.shape)
    if h_NF.numel() > 0:
        gates = (None, None) if gate_EFD is None else (gate_EFD.contiguous(), gate_NF)
        launch_rows(
            kernels.hidden_kernel, _tiles("product" if gate_EFD is None else "hidden", x_ND),
            (x_ND, gates[0], up_EFD, key_N, gates[1], up_NF, h_NF), unpacked(rate_2), end_E,
            x_ND.shape[1], h_NF.shape[1], ACTIVATION=activation,
        )  # fmt: skip
    return launch_product(h_NF, down_EDF, end_E), h_NF, up_NF, gate_NF


def launch_mlp_backward(
    dy_ND: Tensor,
    x_ND: Tensor,
    h_NF: Tensor,
    up_NF: Tensor,
    gate_NF: Tensor,
    gate_EFD: Tensor | None,
    up_EFD: Tensor,
    down_EDF: Tensor,
    end_E: Tensor,
    key_N: Tensor | None,
    rate_2: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, gate, up and down; the gate's is empty without a gate."""
    dy_ND, x_ND, up_EFD, down_EDF = (x.contiguous() for x in (dy_ND, x_ND, up_EFD, down_EDF))
    gated = gate_EFD is not None
    dup_NF, dgate_NF = torch.empty_like(up_NF), torch.empty_like(gate_NF)
    if h_NF.numel() > 0:
        gates = (gate_NF, dgate_NF) if gated else (None, None)
        launch_rows(
            kernels.hidden_gradient_kernel, _tiles("hidden_gradient", x_ND),
            (dy_ND, down_EDF, gates[0], up_NF, key_N, gates[1], dup_NF), unpacked(rate_2), end_E,
            dy_ND.shape[1], h_NF.shape[1], ACTIVATION=activation,
        )  # fmt: skip
    others = (dgate_NF, gate_EFD.contiguous()) if gate_EFD is not None else (None, None)
    return (
        launch_row_gradient(dup_NF, up_EFD, end_E, *others),
        launch_weight_gradient(dgate_NF, x_ND, end_E) if gated else gate_NF.new_empty(0),
        launch_weight_gradient(dup_NF, x_ND, end_E),
        launch_weight_gradient(dy_ND, h_NF, end_E),
    )


grouped_mlp = Operator("reptrain_kernels::grouped_mlp", launch_mlp)
grouped_mlp_backward = Operator("reptrain_kernels::grouped_mlp_backward", launch_mlp_backward)


@grouped_mlp.register_fake
def _shapes_of_mlp(
    x_ND: Tensor, gate_EFD: Tensor | None, up_EFD: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    h_NF = x_ND.new_empty(x_ND.shape[0], up_EFD.shape[1])
    gate_NF = h_NF.new_empty(0 if gate_EFD is None else h_NF.shape)
    return x_ND.new_empty(x_ND.shape), h_NF, torch.empty_like(h_NF), gate_NF


@grouped_mlp_backward.register_fake
def _shapes_of_mlp_gradients(
    dy_ND: Tensor, x_ND: Tensor, h_NF: Tensor, up_NF: Tensor, gate_NF: Tensor, gate_EFD: Tensor | None,
    up_EFD: Tensor, down_EDF: Tensor, *others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dgate_EFD = gate_NF.new_empty(0 if gate_EFD is None else gate_EFD.shape)
    return (
        x_ND.new_empty(x_ND.shape),
        dgate_EFD,
        up_EFD.new_empty(up_EFD.shape),
        down_EDF.new_empty(down_EDF.shape),
    )


def _keep_mlp(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_ND, *others, ctx.activation = inputs
    ctx.save_for_backward(x_ND, *output[1:], *others)
    ctx.mark_non_differentiable(*output[1:])


def _mlp_backward(ctx: Any, dy_ND: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    # Read once: under activation checkpointing each access to `saved_tensors` recomputes them.
    saved = ctx.saved_tensors
    dx, dgate, dup, ddown = grouped_mlp_backward(dy_ND, *saved, ctx.activation)
    return dx, None if saved[4] is None else dgate, dup, ddown, *(None,) * 4


grouped_mlp.register_autograd(_mlp_backward, setup_context=_keep_mlp)
