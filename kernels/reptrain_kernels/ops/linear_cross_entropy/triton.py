"""`linear_cross_entropy` with the row work in Triton, registered as torch operators.

Matrix products are torch's (cuBLAS), which is faster than a Triton kernel. The logits of one chunk of rows
are in memory at a time. A program reads a row of logits, and overwrites it with the gradient of the loss.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reptrain_kernels.operator import Operator
from reptrain_kernels.ops.linear_cross_entropy.reference import IGNORE

CHUNK_BYTES = 2**29
"""Of the logits that are held at once; more where they would come in more than `MAX_CHUNKS`."""

MAX_CHUNKS = 8
"""Each but the first is added to the gradient of the head in its own dtype, and rounds it once more."""

# Rows begin at whole 128 bytes: cuBLAS and vector loads want that, and V may be odd.
_ALIGNED_IDS = 64
_ROWS_OF_TILE = 128

LOG2_E = tl.constexpr(math.log2(math.e))
LEAST = tl.constexpr(-3.0e38)
"""About the lowest fp32 number: finite, so that a difference is never NaN."""


@triton.jit
def _part(row_ptr, at, num_ids, stride):
    """A block of a row's logits in fp32, multiplied by log2(e) for exp2; LEAST after the last id, whose
    exponential is 0."""
    z2 = tl.load(row_ptr + at, mask=at < stride, other=0.0).to(tl.float32) * LOG2_E
    return tl.where(at < num_ids, z2, LEAST)


@triton.jit
def _absorb(z2, top2, mass, total2, IS_SMOOTHED: tl.constexpr):
    """Online softmax per lane: the maximum, the sum of exponentials relative to it, and the sum of logits."""
    new_top2 = tl.maximum(top2, z2)
    mass = mass * tl.exp2(top2 - new_top2) + tl.exp2(z2 - new_top2)
    if IS_SMOOTHED:
        total2 += tl.where(z2 > LEAST, z2, 0.0)
    return new_top2, mass, total2


@triton.jit(do_not_specialize=("label_smoothing", "z_loss"))
def cross_entropy_kernel(
    logit_ptr, target_ptr, weight_ptr, nats_ptr, loss_ptr, correct_ptr, num_ids, stride, label_smoothing,
    z_loss, IGNORED: tl.constexpr, HAS_GRADIENT: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The loss of a row, and its gradient in place of the logits.

    logit is [programs, stride], with logits in the first num_ids columns; the other tensors are [programs].
    """
    IS_SMOOTHED: tl.constexpr = label_smoothing is not None
    row = tl.program_id(0)
    target = tl.load(target_ptr + row)
    row_ptr = logit_ptr + row.to(tl.int64) * stride
    column = tl.arange(0, BLOCK_V)
    if target == IGNORED:
        tl.store(nats_ptr + row, 0.0)
        tl.store(loss_ptr + row, 0.0)
        tl.store(correct_ptr + row, False)
        if HAS_GRADIENT:
            zero = tl.zeros([BLOCK_V], dtype=logit_ptr.dtype.element_ty)
            for start in range(0, stride, BLOCK_V):
                tl.store(row_ptr + start + column, zero, mask=start + column < stride)
    else:
        # The loss of a target that is not an id is NaN.
        is_id = (target >= 0) & (target < num_ids)
        of_target2 = tl.load(row_ptr + target, mask=is_id, other=float("nan")).to(tl.float32) * LOG2_E
        weight = 1.0
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + row).to(tl.float32)
        top2 = tl.full([BLOCK_V], LEAST, tl.float32)
        mass, total2 = tl.zeros([BLOCK_V], dtype=tl.float32), tl.zeros([BLOCK_V], dtype=tl.float32)
        block_of_target = tl.where(is_id, target, 0).to(tl.int32) // BLOCK_V * BLOCK_V
        for start in range(0, block_of_target, BLOCK_V):
            z2 = _part(row_ptr, start + column, num_ids, stride)
            top2, mass, total2 = _absorb(z2, top2, mass, total2, IS_SMOOTHED)
        before2 = _part(row_ptr, block_of_target + column, tl.minimum(target, num_ids), stride)
        before2 = tl.maximum(tl.max(top2, 0), tl.max(before2, 0))
        for start in range(block_of_target, stride, BLOCK_V):
            z2 = _part(row_ptr, start + column, num_ids, stride)
            top2, mass, total2 = _absorb(z2, top2, mass, total2, IS_SMOOTHED)
        largest2 = tl.max(top2, 0)
        lse2 = largest2 + tl.log2(tl.sum(mass * tl.exp2(top2 - largest2), 0))
        lse, nats = lse2 / LOG2_E, (lse2 - of_target2) / LOG2_E
        loss = nats + z_loss * lse * lse
        if IS_SMOOTHED:
            loss += label_smoothing * (of_target2 - tl.sum(total2, 0) / num_ids) / LOG2_E
        tl.store(nats_ptr + row, nats)
        tl.store(loss_ptr + row, weight * loss)
        # The first of equal maxima counts. If a logit is NaN, nats is NaN.
        tl.store(correct_ptr + row, (of_target2 >= largest2) & (of_target2 > before2) & (nats == nats))
        if HAS_GRADIENT:
            of_share = weight * (1.0 + 2.0 * z_loss * lse)
            of_all, of_one = 0.0, weight
            if IS_SMOOTHED:
                of_all, of_one = weight * label_smoothing / num_ids, weight * (1.0 - label_smoothing)
            for start in range(0, stride, BLOCK_V):
                at = start + column
                share = tl.exp2(_part(row_ptr, at, num_ids, stride) - lse2)
                grad = of_share * share - of_all - tl.where(at == target, of_one, 0.0)
                tl.store(row_ptr + at, grad.to(logit_ptr.dtype.element_ty), mask=at < stride)


@triton.jit
def scale_kernel(x_ptr, factor_ptr, y_ptr, size, IN_PLACE: tl.constexpr, BLOCK: tl.constexpr):
    """y = factor x, multiplied in fp32 where torch would round the factor to the dtype of x."""
    factor = tl.load(factor_ptr)
    if not IN_PLACE or factor != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at, mask=at < size, other=0.0).to(tl.float32)
        tl.store(y_ptr + at, (x * factor).to(y_ptr.dtype.element_ty), mask=at < size)


def row_block(num_ids: int) -> dict[str, int]:
    """Block of a row, and warps: sixteen ids per thread.

    With rows of 32 thousand ids, a multiprocessor processes three rows at once, so that they are still in the
    L2 cache at the second pass.
    """
    block = min(max(triton.next_power_of_2(num_ids), _ALIGNED_IDS), 4096)
    return {"BLOCK_V": block, "num_warps": max(block // 512, 1)}


def chunk_rows(num_rows: int, num_ids: int, element_bytes: int) -> int:
    """Number of rows whose logits are in memory at a time."""
    rows = max(CHUNK_BYTES // (num_ids * element_bytes), triton.cdiv(num_rows, MAX_CHUNKS))
    # A multiple of the product's tile, except for the last chunk.
    return min(triton.cdiv(rows, _ROWS_OF_TILE) * _ROWS_OF_TILE, num_rows)


def launch_linear_cross_entropy(
    x: Tensor,
    head_VD: Tensor,
    target: Tensor,
    weight: Tensor | None,
    label_smoothing: Tensor | None,
    z_loss: Tensor | None,
    has_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `linear_cross_entropy.Loss`, whose fields come first.

    Returns:
        The fields of `Loss`, then the gradients of the loss by x and by the head; empty without
        ``has_gradient``.
    """
    num_ids, width = head_VD.shape
    x_ND, target_N = x.reshape(-1, width), target.reshape(-1).contiguous()
    weight_N = None if weight is None else weight.reshape(-1).contiguous()
    nats, is_correct = _new_results(target)
    loss_N = nats.new_empty(target_N.shape)
    grad_x, grad_head_VD = _new_gradients(x, head_VD, has_gradient)
    if not len(x_ND):
        return loss_N.sum(), nats, is_correct, grad_x, grad_head_VD.zero_()
    rows = chunk_rows(len(x_ND), num_ids, x.element_size())
    stride = triton.cdiv(num_ids, _ALIGNED_IDS) * _ALIGNED_IDS
    padded_CV = x.new_empty(rows, stride)
    smoothing = None if label_smoothing is None else label_smoothing.item()
    numbers = (num_ids, stride, smoothing, 0.0 if z_loss is None else z_loss.item())
    how = {"IGNORED": IGNORE, "HAS_GRADIENT": has_gradient, **row_block(num_ids)}
    for first in range(0, len(x_ND), rows):
        chunk = slice(first, first + rows)
        x_CD = x_ND[chunk]
        logit_CV = padded_CV[: len(x_CD), :num_ids]
        torch.mm(x_CD, head_VD.T, out=logit_CV)
        cross_entropy_kernel[(len(x_CD),)](
            logit_CV, target_N[chunk], None if weight_N is None else weight_N[chunk], nats.view(-1)[chunk],
            loss_N[chunk], is_correct.view(-1)[chunk], *numbers, **how,
        )  # fmt: skip
        if has_gradient:
            torch.mm(logit_CV, head_VD, out=grad_x.view(-1, width)[chunk])
            if first == 0:
                torch.mm(logit_CV.T, x_CD, out=grad_head_VD)
            else:
                grad_head_VD.addmm_(logit_CV.T, x_CD)
    return loss_N.sum(), nats, is_correct, grad_x, grad_head_VD


def _new_results(target: Tensor) -> tuple[Tensor, Tensor]:
    nats = target.new_empty(target.shape, dtype=torch.float32)
    return nats, target.new_empty(target.shape, dtype=torch.bool)


def _new_gradients(x: Tensor, head_VD: Tensor, has_gradient: bool) -> tuple[Tensor, Tensor]:
    if not has_gradient:
        return x.new_empty(0), head_VD.new_empty(0)
    return x.new_empty(x.shape), head_VD.new_empty(head_VD.shape)


linear_cross_entropy_forward = Operator("reptrain_kernels::linear_cross_entropy", launch_linear_cross_entropy)


@linear_cross_entropy_forward.register_fake
def _shapes(
    x: Tensor, head_VD: Tensor, target: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    nats, is_correct = _new_results(target)
    return nats.new_empty(()), nats, is_correct, *_new_gradients(x, head_VD, others[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *untracked = output
    ctx.mark_non_differentiable(*untracked)
    ctx.save_for_backward(*untracked[-2:])


def _backward(ctx: Any, grad: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    return *(_scaled(kept, grad) for kept in ctx.saved_tensors), *(None,) * 5


linear_cross_entropy_forward.register_autograd(_backward, setup_context=_keep)


def _scaled(kept: Tensor, factor: Tensor) -> Tensor:
    """A saved gradient times an fp32 number on its device.

    Eager: in place, since the gradient of the head may be the largest tensor. The raised version makes
    autograd refuse a second backward pass. Under torch.compile: the operator `scale`.
    """
    if type(kept) is not Tensor:
        return scale(kept, factor)
    launch_scale(kept, factor, kept)
    torch.autograd.graph.increment_version(kept)
    return kept


def launch_scale(x: Tensor, factor: Tensor, y: Tensor) -> None:
    """y = factor x, both contiguous. y may be x; then a factor of 1 writes nothing."""
    if x.numel():
        grid = (triton.cdiv(x.numel(), 1024),)
        scale_kernel[grid](x, factor, y, x.numel(), IN_PLACE=x is y, BLOCK=1024)


@partial(Operator, "reptrain_kernels::scale")
def scale(x: Tensor, factor: Tensor) -> Tensor:
    """``x`` times an fp32 number on its device, rounded once."""
    y = torch.empty_like(x)
    launch_scale(x, factor, y)
    return y


@scale.register_fake
def _shape_of_scaled(x: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(x)
