"""Grouped matrix products, one matrix per group of rows, and MLPs made of them.

Shapes: N rows, sorted by group, E groups, I columns of the rows, O columns of the result; D width of an MLP's
rows, F its hidden units.

    y[n] = W[e] x[n]                                            for the rows n of group e
    mlp(x)[n] = Wd[e] drop(act(Wg[e] x[n]) Wu[e] x[n])          or Wd[e] drop(act(Wu[e] x[n])) without a gate

The numbers of rows are on the device only: no call synchronizes with the host.

Source:
    Gale et al., "MegaBlocks: Efficient sparse training with mixture-of-experts", 2022.
"""

from __future__ import annotations

from torch import Tensor

from reptrain_kernels import counter, rates
from reptrain_kernels.implementation import Implementation, choose_grouped
from reptrain_kernels.ops.gated import GATED, Activation
from reptrain_kernels.ops.grouped.reference import (
    ends,
    grouped_mlp_reference,
    grouped_mm_reference,
    one_by_one,
)

__all__ = ["ends", "grouped_mlp", "grouped_mm", "one_by_one"]


def grouped_mm(
    x_NI: Tensor, weight_EOI: Tensor, count_E: Tensor, *, impl: Implementation | None = None
) -> Tensor:
    """Multiply the rows of each group by the transpose of its matrix.

    Args:
        x_NI: fp32, bf16 or fp16; in torch also float64, which is multiplied group by group. For the other
            dtypes, torch needs I elements to be a multiple of 16 bytes.
        weight_EOI: The matrices, of the same dtype. The rule for I holds for O too.
        count_E: int64, rows of each group; their sum is N.
        impl: "torch" or "triton"; None: the faster one (see `choose_grouped`).

    Returns:
        y_NO, of the same dtype.

    Raises:
        ValueError: If shapes or dtypes do not match.
    """
    _check("weight_EOI", x_NI, weight_EOI, count_E)
    if choose_grouped(x_NI.device, x_NI.dtype, impl) == "triton":
        from reptrain_kernels.ops.grouped import triton as grouped_triton

        return grouped_triton.grouped_mm(x_NI, weight_EOI, ends(count_E))
    return grouped_mm_reference(x_NI, weight_EOI, count_E)


def grouped_mlp(
    x_ND: Tensor,
    gate_EFD: Tensor | None,
    up_EFD: Tensor,
    down_EDF: Tensor,
    count_E: Tensor,
    *,
    activation: Activation,
    key_N: Tensor | None = None,
    rate: rates.Rate = 0.0,
    impl: Implementation | None = None,
) -> Tensor:
    """Apply the MLP of each group to its rows.

    Args:
        x_ND: fp32, bf16 or fp16; in torch also float64.
        gate_EFD: Gate matrices, of the same dtype; None if the activation is not gated.
        up_EFD: Up matrices, of the same dtype.
        down_EDF: Down matrices, of the same dtype.
        count_E: int64, rows of each group; their sum is N.
        activation: The activation function.
        key_N: int64, call key of each row for dropout of its hidden units, at position 0 (see `counter`);
            None: no dropout.
        rate: Probability of dropping a hidden unit, in [0, 1), a number or packed (see `counter.dropout`).
        impl: "torch" or "triton"; None: the faster one (see `choose_grouped`). Triton computes the hidden
            units from products in fp32; torch from products rounded to the dtype.

    Returns:
        y_ND, of the same dtype.

    Raises:
        ValueError: If shapes or dtypes do not match, or the rate is not valid.
    """
    for name, weight in (("gate_EFD", gate_EFD), ("up_EFD", up_EFD)):
        if weight is not None:
            _check(name, x_ND, weight, count_E)
    if gate_EFD is not None and gate_EFD.shape != up_EFD.shape:
        raise ValueError(
            f"gate_EFD: must have the shape of up_EFD, {tuple(up_EFD.shape)}, but got {tuple(gate_EFD.shape)}"
        )
    if down_EDF.shape != up_EFD.mT.shape or down_EDF.dtype != up_EFD.dtype:
        raise ValueError(
            f"down_EDF: must be {up_EFD.dtype} of {tuple(up_EFD.mT.shape)},"
            f" but got {down_EDF.dtype} of {tuple(down_EDF.shape)}"
        )
    if (gate_EFD is not None) != (activation in GATED):
        raise ValueError(
            f"gate_EFD: must be given for {' and '.join(GATED)} only, but the activation is {activation}"
        )
    if key_N is not None:
        counter.check_key("key_N", key_N, x_ND[:, None])
    key_N, rate_2 = counter.key_and_rate(key_N, rate)
    chosen = choose_grouped(x_ND.device, x_ND.dtype, impl)
    if chosen == "torch":
        return grouped_mlp_reference(
            x_ND, gate_EFD, up_EFD, down_EDF, count_E, activation, key_N, rate_2, impl
        )
    from reptrain_kernels.ops.grouped import triton as grouped_triton

    return grouped_triton.grouped_mlp(
        x_ND, gate_EFD, up_EFD, down_EDF, ends(count_E), key_N, rate_2, activation
    )[0]


def _check(name: str, x_NI: Tensor, weight_EOI: Tensor, count_E: Tensor) -> None:
    shape = (*count_E.shape, weight_EOI.shape[1], x_NI.shape[-1])
    if x_NI.ndim != 2 or count_E.ndim != 1 or weight_EOI.shape != shape or weight_EOI.dtype != x_NI.dtype:
        raise ValueError(
            f"{name}: must be {x_NI.dtype}, [groups, outputs, inputs] for rows of {tuple(x_NI.shape)} in"
            f" {tuple(count_E.shape)} groups, but got {weight_EOI.dtype} of {tuple(weight_EOI.shape)}"
        )
