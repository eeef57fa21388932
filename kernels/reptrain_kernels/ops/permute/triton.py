"""`sort`, `send` and `collect` in Triton, registered as torch operators: torch.compile takes them whole.

Rows: a program holds one token, reads its row once and writes all of its places, or the other way round. So
each row is moved once, and nothing is added in memory.

Places: programs count the experts of some assignments each; from the running sums over all counts, expert by
expert, each knows where its first assignment of an expert goes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_UNITS = 4096
_MOST_CHOICES = 4096


@triton.jit
def _chosen(expert_ptr, first, num_assignments, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr):
    """Assignments by experts: 1 where they meet."""
    assignment = first + tl.arange(0, BLOCK_N)
    expert = tl.load(expert_ptr + assignment, mask=assignment < num_assignments, other=-1)
    return (expert[:, None] == tl.arange(0, BLOCK_E)[None, :]).to(tl.int32)


@triton.jit(do_not_specialize=["num_assignments"])
def count_kernel(
    expert_ptr, count_ptr, num_assignments, num_experts, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr
):
    """count[expert, program]: how many of a program's assignments are an expert's."""
    chosen = _chosen(expert_ptr, tl.program_id(0) * BLOCK_N, num_assignments, BLOCK_N, BLOCK_E)
    expert = tl.arange(0, BLOCK_E)
    at = count_ptr + expert * tl.num_programs(0) + tl.program_id(0)
    tl.store(at, tl.sum(chosen, 0), mask=expert < num_experts)


@triton.jit(do_not_specialize=["num_assignments"])
def place_kernel(
    expert_ptr, sum_ptr, order_ptr, place_ptr, num_assignments, num_experts, BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """place[n] and order[place[n]] = n. The sums are those of the counts up to each one's own."""
    first = tl.program_id(0) * BLOCK_N
    chosen = _chosen(expert_ptr, first, num_assignments, BLOCK_N, BLOCK_E)
    expert, assignment = tl.arange(0, BLOCK_E), first + tl.arange(0, BLOCK_N)
    at = sum_ptr + expert * tl.num_programs(0) + tl.program_id(0)
    sums = tl.load(at, mask=expert < num_experts, other=0)
    # The last one of this program's takes the last place before the sum.
    place = (sums - tl.sum(chosen, 0))[None, :] + tl.cumsum(chosen, 0) - 1
    place = tl.sum(tl.where(chosen > 0, place, 0), 1)
    inside = assignment < num_assignments
    tl.store(place_ptr + assignment, place, mask=inside)
    tl.store(order_ptr + place, assignment.to(tl.int64), mask=inside)


@triton.jit
def send_kernel(x_ptr, place_ptr, y_ptr, num_units, TOP_K: tl.constexpr, BLOCK_D: tl.constexpr):
    """x_ND[place[m, k]] = x_MD[m], a part of the row."""
    token, unit = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = unit < num_units
    x = tl.load(x_ptr + token * num_units + unit, mask=inside, other=0.0)
    for k in tl.static_range(TOP_K):
        place = tl.load(place_ptr + token * TOP_K + k)
        tl.store(y_ptr + place * num_units + unit, x, mask=inside)


@triton.jit
def collect_kernel(
    y_ptr, gate_ptr, place_ptr, out_ptr, num_units, TOP_K: tl.constexpr, BLOCK_D: tl.constexpr
):
    """out[m] = sum over k of gate[m, k] y[place[m, k]], a part of the row; without gates they are 1."""
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
def collect_gradient_kernel(
    grad_ptr, y_ptr, gate_ptr, place_ptr, grad_y_ptr, grad_gate_ptr, num_units, TOP_K: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dy[place[m, k]] = gate[m, k] grad[m] and dgate[m, k] = grad[m] . y[place[m, k]], the whole row."""
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
    """Units at a time, and warps: eight units to a thread, 16 bytes of bf16."""
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


def launch_send(x_MD: Tensor, place_MK: Tensor) -> Tensor:
    """See `permute.send`."""
    x_MD, place_MK = x_MD.contiguous(), place_MK.contiguous()
    (num_tokens, num_units), top_k = x_MD.shape, place_MK.shape[1]
    x_ND = x_MD.new_empty(num_tokens * top_k, num_units)
    if x_ND.numel() > 0:
        block, num_warps = _block(num_units)
        send_kernel[(num_tokens, triton.cdiv(num_units, block))](
            x_MD, place_MK, x_ND, num_units, TOP_K=top_k, BLOCK_D=block, num_warps=num_warps
        )
    return x_ND


def launch_collect(y_ND: Tensor, gate_MK: Tensor | None, place_MK: Tensor) -> Tensor:
    """See `permute.collect`; without gates they are 1."""
    y_ND, place_MK = y_ND.contiguous(), place_MK.contiguous()
    (num_tokens, top_k), num_units = place_MK.shape, y_ND.shape[1]
    y_MD = y_ND.new_empty(num_tokens, num_units)
    if y_MD.numel() > 0:
        block, num_warps = _block(num_units)
        collect_kernel[(num_tokens, triton.cdiv(num_units, block))](
            y_ND, None if gate_MK is None else gate_MK.contiguous(), place_MK, y_MD, num_units, TOP_K=top_k,
            BLOCK_D=block, num_warps=num_warps,
        )  # fmt: skip
    return y_MD


def launch_collect_backward(
    grad_MD: Tensor, y_ND: Tensor, gate_MK: Tensor, place_MK: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of the places' rows and of the gates."""
    grad_MD, y_ND, gate_MK, place_MK = (x.contiguous() for x in (grad_MD, y_ND, gate_MK, place_MK))
    (num_tokens, top_k), num_units = place_MK.shape, y_ND.shape[1]
    grad_y_ND, grad_gate_MK = torch.empty_like(y_ND), torch.empty_like(gate_MK)
    if y_ND.numel() == 0:
        return grad_y_ND, grad_gate_MK.zero_()
    block, num_warps = _block(num_units)
    collect_gradient_kernel[(num_tokens,)](
        grad_MD, y_ND, gate_MK, place_MK, grad_y_ND, grad_gate_MK, num_units, TOP_K=top_k,
        BLOCK_K=triton.next_power_of_2(top_k), BLOCK_D=block, num_warps=num_warps,
    )  # fmt: skip
    return grad_y_ND, grad_gate_MK


sort = torch.library.custom_op("reptrain_kernels::sort", launch_sort, mutates_args=())
send = torch.library.custom_op("reptrain_kernels::send", launch_send, mutates_args=())
collect = torch.library.custom_op("reptrain_kernels::collect", launch_collect, mutates_args=())
collect_backward = torch.library.custom_op(
    "reptrain_kernels::collect_backward", launch_collect_backward, mutates_args=()
)


@sort.register_fake
def _shapes_of_sorted(expert_MK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    order_N = expert_MK.new_empty(expert_MK.shape[0] * expert_MK.shape[1])
    return order_N, torch.empty_like(expert_MK), expert_MK.new_empty(num_experts)


@send.register_fake
def _shape_of_sent(x_MD: Tensor, place_MK: Tensor) -> Tensor:
    return x_MD.new_empty(place_MK.shape[0] * place_MK.shape[1], x_MD.shape[1])


@collect.register_fake
def _shape_of_collected(y_ND: Tensor, gate_MK: Tensor | None, place_MK: Tensor) -> Tensor:
    return y_ND.new_empty(place_MK.shape[0], y_ND.shape[1])


@collect_backward.register_fake
def _shapes_of_gradients(
    grad_MD: Tensor, y_ND: Tensor, gate_MK: Tensor, place_MK: Tensor
) -> tuple[Tensor, Tensor]:
    return y_ND.new_empty(y_ND.shape), gate_MK.new_empty(gate_MK.shape)


def _keep_places(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _send_back(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None]:
    (place_MK,) = ctx.saved_tensors
    return collect(grad_ND, None, place_MK), None


def _keep_all(ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _collect_back(ctx: Any, grad_MD: Tensor) -> tuple[Tensor, Tensor | None, None]:
    y_ND, gate_MK, place_MK = ctx.saved_tensors
    if gate_MK is None:
        return send(grad_MD, place_MK), None, None
    return *collect_backward(grad_MD, y_ND, gate_MK, place_MK), None


send.register_autograd(_send_back, setup_context=_keep_places)
collect.register_autograd(_collect_back, setup_context=_keep_all)
