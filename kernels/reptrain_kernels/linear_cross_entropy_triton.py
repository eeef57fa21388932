"""`linear_cross_entropy` with the row work in Triton, registered as torch operators.

Products are torch's (cuBLAS), as no kernel of ours beats them. The logits of one chunk of rows are in memory
at a time; one program reads a row of them, and writes the loss's gradient over it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reptrain_kernels.linear_cross_entropy import IGNORE

CHUNK_BYTES = 2**29
"""Of the logits that are held at once; more where they would come in more than `MAX_CHUNKS`."""

MAX_CHUNKS = 8
"""Each but the first is added to the gradient of the head in its own dtype, and rounds it once more."""

# Rows begin at whole 128 bytes: cuBLAS and vector loads want that, and V may be odd.
_ALIGNED_IDS = 64
_ROWS_OF_TILE = 128


@triton.jit(do_not_specialize=("label_smoothing", "z_loss"))
def cross_entropy_kernel(
    logit_ptr, target_ptr, weight_ptr, nats_ptr, loss_ptr, correct_ptr, num_ids, stride, label_smoothing,
    z_loss, IGNORED: tl.constexpr, HAS_GRADIENT: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """A row: its loss, and the gradient of that in the logits' place.

    logit: [programs, stride], of which num_ids columns hold logits and the others nothing; the rest:
    [programs].
    """
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
        weight = 1.0
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + row).to(tl.float32)
        # A target that is no id loses NaN.
        is_id = (target >= 0) & (target < num_ids)
        of_target = tl.load(row_ptr + target, mask=is_id, other=float("nan")).to(tl.float32)
        top = tl.full((), -float("inf"), tl.float32)
        mass, total = tl.zeros([BLOCK_V], dtype=tl.float32), tl.zeros([BLOCK_V], dtype=tl.float32)
        beaten = tl.zeros([BLOCK_V], dtype=tl.int32)
        for start in range(0, stride, BLOCK_V):
            at = start + column
            z = tl.load(row_ptr + at, mask=at < stride, other=0.0).to(tl.float32)
            total += tl.where(at < num_ids, z, 0.0)
            z = tl.where(at < num_ids, z, -float("inf"))
            # Written so that NaN beats all.
            beaten |= ((z < of_target) | ((z == of_target) & (at >= target)) | (at >= num_ids)).to(
                tl.int32
            ) ^ 1
            new_top = tl.maximum(top, tl.max(z, 0))
            mass = mass * tl.exp(top - new_top) + tl.exp(z - new_top)
            top = new_top
        lse = top + tl.log(tl.sum(mass, 0))
        nats = lse - of_target
        added = label_smoothing * (of_target - tl.sum(total, 0) / num_ids) + z_loss * lse * lse
        tl.store(nats_ptr + row, nats)
        tl.store(loss_ptr + row, weight * (nats + added))
        tl.store(correct_ptr + row, tl.max(beaten, 0) == 0)
        if HAS_GRADIENT:
            of_share = weight * (1.0 + 2.0 * z_loss * lse)
            of_all = weight * label_smoothing / num_ids
            of_one = weight * (1.0 - label_smoothing)
            for start in range(0, stride, BLOCK_V):
                at = start + column
                z = tl.load(row_ptr + at, mask=at < stride, other=0.0).to(tl.float32)
                grad = of_share * tl.exp(z - lse) - of_all - tl.where(at == target, of_one, 0.0)
                grad = tl.where(at < num_ids, grad, 0.0)
                tl.store(row_ptr + at, grad.to(logit_ptr.dtype.element_ty), mask=at < stride)


@triton.jit
def scale_kernel(x_ptr, factor_ptr, y_ptr, size, BLOCK: tl.constexpr):
    """y = factor x, in fp32, where torch would round the factor to the dtype of x."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < size, other=0.0).to(tl.float32)
    y = x * tl.load(factor_ptr)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=at < size)


def row_block(num_ids: int) -> dict[str, int]:
    """A part of a row: sixteen ids to a thread."""
    block = min(max(triton.next_power_of_2(num_ids), _ALIGNED_IDS), 4096)
    return {"BLOCK_V": block, "num_warps": max(block // 512, 1)}


def chunk_rows(num_rows: int, num_ids: int, element_bytes: int) -> int:
    """Rows whose logits are held at once."""
    rows = max(CHUNK_BYTES // (num_ids * element_bytes), triton.cdiv(num_rows, MAX_CHUNKS))
    # Whole tiles of a product, but for the last.
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
        Besides these the loss's gradients by x and by the head, which are empty where not asked for.
    """
    num_ids, width = head_VD.shape
    x_ND, target_N = x.reshape(-1, width), target.reshape(-1).contiguous()
    weight_N = None if weight is None else weight.reshape(-1).contiguous()
    nats, is_correct = (target.new_empty(target.shape, dtype=dtype) for dtype in (torch.float32, torch.bool))
    loss_N = nats.new_empty(target_N.shape)
    grad_x, grad_head_VD = _new_gradients(x, head_VD, has_gradient)
    if not len(x_ND):
        return loss_N.sum(), nats, is_correct, grad_x, grad_head_VD.zero_()
    rows = chunk_rows(len(x_ND), num_ids, x.element_size())
    stride = triton.cdiv(num_ids, _ALIGNED_IDS) * _ALIGNED_IDS
    padded_CV = x.new_empty(rows, stride)
    coefficients = (0.0 if number is None else number.item() for number in (label_smoothing, z_loss))
    how = {"IGNORED": IGNORE, "HAS_GRADIENT": has_gradient, **row_block(num_ids)}
    numbers = (num_ids, stride, *coefficients)
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


def _new_gradients(x: Tensor, head_VD: Tensor, has_gradient: bool) -> tuple[Tensor, Tensor]:
    if not has_gradient:
        return x.new_empty(0), head_VD.new_empty(0)
    return x.new_empty(x.shape), head_VD.new_empty(head_VD.shape)


linear_cross_entropy_forward = torch.library.custom_op(
    "reptrain_kernels::linear_cross_entropy", launch_linear_cross_entropy, mutates_args=()
)


@linear_cross_entropy_forward.register_fake
def _shapes(
    x: Tensor, head_VD: Tensor, target: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    nats, is_correct = (target.new_empty(target.shape, dtype=dtype) for dtype in (torch.float32, torch.bool))
    return nats.new_empty(()), nats, is_correct, *_new_gradients(x, head_VD, others[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *untracked = output
    ctx.mark_non_differentiable(*untracked)
    ctx.save_for_backward(*untracked[-2:])


def _backward(ctx: Any, grad: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    return *(scale(kept, grad) for kept in ctx.saved_tensors), *(None,) * 5


linear_cross_entropy_forward.register_autograd(_backward, setup_context=_keep)


def launch_scale(x: Tensor, factor: Tensor) -> Tensor:
    """``x`` times a number on its device, rounded once."""
    y = torch.empty_like(x)
    if x.numel():
        scale_kernel[(triton.cdiv(x.numel(), 1024),)](x, factor, y, x.numel(), BLOCK=1024)
    return y


scale = torch.library.custom_op("reptrain_kernels::scale", launch_scale, mutates_args=())


@scale.register_fake
def _shape_of_scaled(x: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(x)
