"""`sort`, `dispatch` and `combine` in Triton, registered as torch operators: torch.compile does not break the
graph at them.

Rows: a program handles one token. It reads the row once and writes all of its places, or reads the places and
writes the row. Each row is moved once, and nothing is accumulated in memory.

Places: each program counts a block of the assignments by expert. The cumulative sum of the counts, expert
by expert, gives the place of each program's first assignment to an expert.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reptrain_kernels.operator import Operator

_MOST_UNITS = 4096
_MOST_CHOICES = 4096


@triton.jit
def _chosen(expert_ptr, first, num_assignments, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr):
    """One-hot experts of a block of assignments, int32 [BLOCK_N, BLOCK_E]."""
    assignment = first + tl.arange(0, BLOCK_N)
    expert = tl.load(expert_ptr + assignment, mask=assignment < num_assignments, other=-1)
    return (expert[:, None] == tl.arange(0, BLOCK_E)[None, :]).to(tl.int32)


@triton.jit(do_not_specialize=["num_assignments"])
def count_kernel(
    expert_ptr, count_ptr, num_assignments, num_experts, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr
):
    """count[expert, program]: number of the program's assignments to the expert."""
    chosen = _chosen(expert_ptr, tl.program_id(0) * BLOCK_N, num_assignments, BLOCK_N, BLOCK_E)
    expert = tl.arange(0, BLOCK_E)
    at = count_ptr + expert * tl.num_programs(0) + tl.program_id(0)
    tl.store(at, tl.sum(chosen, 0), mask=expert < num_experts)


@triton.jit(do_not_specialize=["num_assignments"])
def place_kernel(
    expert_ptr, sum_ptr, order_ptr, place_ptr, num_assignments, num_experts, BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """place[n], and order[place[n]] = n, from the inclusive cumulative sums of the counts."""
    first = tl.program_id(0) * BLOCK_N
    chosen = _chosen(expert_ptr, first, num_assignments, BLOCK_N, BLOCK_E)
    expert, assignment = tl.arange(0, BLOCK_E), first + tl.arange(0, BLOCK_N)
    at = sum_ptr + expert * tl.num_programs(0) + tl.program_id(0)
    sums = tl.load(at, mask=expert < num_experts, other=0)
    # The program's last assignment to an expert gets the last place before the sum.
    place = (sums - tl.sum(chosen, 0))[None, :] + tl.cumsum(chosen, 0) - 1
    place = tl.sum(tl.where(chosen > 0, place, 0), 1)
    inside = assignment < num_assignments
    tl.store(place_ptr + assignment, place, mask=inside)
    tl.store(order_ptr + place, assignment.to(tl.int64), mask=inside)


@triton.jit
def dispatch_kernel(x_ptr, place_ptr, y_ptr, num_units, TOP_K: tl.constexpr, BLOCK_D: tl.constexpr):
    """x_ND[place[m, k]] = x_MD[m], for BLOCK_D units of a row."""
    token, unit = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = unit < num_units
    x = tl.load(x_ptr + token * num_units + unit, mask=inside, other=0.0)
    for k in tl.static_range(TOP_K):
        place = tl.load(place_ptr + token * TOP_K + k)
        tl.store(y_ptr + place * num_units + unit, x, mask=inside)


@triton.jit
def combine_kernel(
    y_ptr, gate_ptr, place_ptr, out_ptr, num_units, TOP_K: tl.constexpr, BLOCK_D: tl.constexpr
):
    """out[m] = sum over k of gate[m, k] y[place[m, k]], for BLOCK_D units of a row; gates are 1 if absent."""
    token, unit = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = unit < num_units
    total = tl.zeros([BLOCK_D], dtype=tl.float32)
    for k in tl.static_range(TOP_K):
        place = tl.load(place_ptr + token * TOP_K + k)
        y = tl.load(y_ptr + place * num_units + unit, mask=inside, other=0.0).to(tl.float32)
        if gate_ptr is not None:
            y *= tl.load(gate_ptr + token * TOP_K + k).to(tl.float32)
        total += y
    tl.store(out_ptr + token * num_units + unit, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def combine_gradient_kernel(
    grad_ptr, y_ptr, gate_ptr, place_ptr, grad_y_ptr, grad_gate_ptr, num_units, TOP_K: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dy[place[m, k]] = gate[m, k] grad[m] and dgate[m, k] = grad[m] . y[place[m, k]], for a whole row."""
    token, slot = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_K)
    grad_gate = tl.zeros([BLOCK_K], dtype=tl.float32)
    for start in range(0, num_units, BLOCK_D):
        unit = start + tl.arange(0, BLOCK_D)
        inside = unit < num_units
        grad = tl.load(grad_ptr + token * num_units + unit, mask=inside, other=0.0).to(tl.float32)
        for k in tl.static_range(TOP_K):
            at = tl.load(place_ptr + token * TOP_K + k) * num_units + unit
            y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
            grad_gate += tl.where(slot == k, tl.sum(grad * y, 0), 0.0)
            grad_y = grad * tl.load(gate_ptr + token * TOP_K + k).to(tl.float32)
            tl.store(grad_y_ptr + at, grad_y.to(grad_y_ptr.dtype.element_ty), mask=inside)
    grad_gate = grad_gate.to(grad_gate_ptr.dtype.element_ty)
    tl.store(grad_gate_ptr + token * TOP_K + slot, grad_gate, mask=slot < TOP_K)


def _block(num_units: int) -> tuple[int, int]:
    """Units per iteration, and warps: eight units per thread, which are 16 bytes of bf16."""
    block = min(max(triton.next_power_of_2(num_units), 32), _MOST_UNITS)
    return block, min(max(block // 256, 1), 8)


def launch_sort(expert_MK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `permute.sort`: order_N, place_MK, count_E."""
    expert_MK = expert_MK.contiguous()
    place_MK, order_N = torch.empty_like(expert_MK), expert_MK.new_empty(expert_MK.numel())
    experts = triton.next_power_of_2(num_experts)
    block = min(max(_MOST_CHOICES // experts, 16), 256)
    programs = triton.cdiv(len(order_N), block)
    count = expert_MK.new_empty(num_experts, programs, dtype=torch.int32)
    if len(order_N) > 0:
        count_kernel[(programs,)](expert_MK, count, len(order_N), num_experts, BLOCK_N=block, BLOCK_E=experts)
        sums = count.flatten().cumsum(0)
        place_kernel[(programs,)](
            expert_MK, sums, order_N, place_MK, len(order_N), num_experts, BLOCK_N=block, BLOCK_E=experts
        )
    return order_N, place_MK, count.sum(1)


def launch_dispatch(x_MD: Tensor, place_MK: Tensor) -> Tensor:
    """See `permute.dispatch`."""
    x_MD, place_MK = x_MD.contiguous(), place_MK.contiguous()
    (num_tokens, num_units), top_k = x_MD.shape, place_MK.shape[1]
    x_ND = x_MD.new_empty(num_tokens * top_k, num_units)
    if x_ND.numel() > 0:
        block, num_warps = _block(num_units)
        dispatch_kernel[(num_tokens, triton.cdiv(num_units, block))](
            x_MD, place_MK, x_ND, num_units, TOP_K=top_k, BLOCK_D=block, num_warps=num_warps
        )
    return x_ND


def launch_combine(y_ND: Tensor, gate_MK: Tensor | None, place_MK: Tensor) -> Tensor:
    """See `permute.combine`; gates are 1 if absent."""
    y_ND, place_MK = y_ND.contiguous(), place_MK.contiguous()
    (num_tokens, top_k), num_units = place_MK.shape, y_ND.shape[1]
    y_MD = y_ND.new_empty(num_tokens, num_units)
    if y_MD.numel() > 0:
        block, num_warps = _block(num_units)
        combine_kernel[(num_tokens, triton.cdiv(num_units, block))](
            y_ND, None if gate_MK is None else gate_MK.contiguous(), place_MK, y_MD, num_units, TOP_K=top_k,
            BLOCK_D=block, num_warps=num_warps,
        )  # fmt: skip
    return y_MD


def launch_combine_backward(
    grad_MD: Tensor, y_ND: Tensor, gate_MK: Tensor, place_MK: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of ``y_ND`` and ``gate_MK``."""
    grad_MD, y_ND, gate_MK, place_MK = (x.contiguous() for x in (grad_MD, y_ND, gate_MK, place_MK))
    (num_tokens, top_k), num_units = place_MK.shape, y_ND.shape[1]
    grad_y_ND, grad_gate_MK = torch.empty_like(y_ND), torch.empty_like(gate_MK)
    if y_ND.numel() == 0:
        return grad_y_ND, grad_gate_MK.zero_()
    block, num_warps = _block(num_units)
    combine_gradient_kernel[(num_tokens,)](
        grad_MD, y_ND, gate_MK, place_MK, grad_y_ND, grad_gate_MK, num_units, TOP_K=top_k,
        BLOCK_K=triton.next_power_of_2(top_k), BLOCK_D=block, num_warps=num_warps,
    )  # fmt: skip
    return grad_y_ND, grad_gate_MK


sort = Operator("reptrain_kernels::sort", launch_sort)
dispatch = Operator("reptrain_kernels::dispatch", launch_dispatch)
combine = Operator("reptrain_kernels::combine", launch_combine)
combine_backward = Operator("reptrain_kernels::combine_backward", launch_combine_backward)


@sort.register_fake
def _shapes_of_sorted(expert_MK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    order_N = expert_MK.new_empty(expert_MK.shape[0] * expert_MK.shape[1])
    return order_N, torch.empty_like(expert_MK), expert_MK.new_empty(num_experts)


@dispatch.register_fake
def _shape_of_dispatched(x_MD: Tensor, place_MK: Tensor) -> Tensor:
    return x_MD.new_empty(place_MK.shape[0] * place_MK.shape[1], x_MD.shape[1])


@combine.register_fake
def _shape_of_combined(y_ND: Tensor, gate_MK: Tensor | None, place_MK: Tensor) -> Tensor:
    return y_ND.new_empty(place_MK.shape[0], y_ND.shape[1])


@combine_backward.register_fake
def _shapes_of_gradients(
    grad_MD: Tensor, y_ND: Tensor, gate_MK: Tensor, place_MK: Tensor
) -> tuple[Tensor, Tensor]:
    return y_ND.new_empty(y_ND.shape), gate_MK.new_empty(gate_MK.shape)


def _keep_places(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _dispatch_backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None]:
    (place_MK,) = ctx.saved_tensors
    return combine(grad_ND, None, place_MK), None


def _keep_all(ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _combine_backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor, Tensor | None, None]:
    y_ND, gate_MK, place_MK = ctx.saved_tensors
    if gate_MK is None:
        return dispatch(grad_MD, place_MK), None, None
    return *combine_backward(grad_MD, y_ND, gate_MK, place_MK), None


dispatch.register_autograd(_dispatch_backward, setup_context=_keep_places)
combine.register_autograd(_combine_backward, setup_context=_keep_all)
