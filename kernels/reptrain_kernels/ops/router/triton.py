"""`route` in Triton, registered as torch operators: torch.compile does not break the graph at them.

A program handles a block of a row's tokens, and all experts. It stores its sums over tokens separately, and
torch adds them: no atomics. The backward pass recomputes the scores from the logits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reptrain_kernels.operator import Operator

_ELEMENTS = 1024


@triton.jit
def _scores(logit_ptr, row, token, num_tokens, num_experts, BLOCK_E: tl.constexpr, SCORE: tl.constexpr):
    """Scores, softmax probabilities and logsumexp of a block of tokens; 0 after the last expert.

    Tokens after the end of the row read its last token.
    """
    expert = tl.arange(0, BLOCK_E)[None, :]
    line = row * num_tokens + tl.minimum(token, num_tokens - 1)[:, None]
    logit = tl.load(logit_ptr + line * num_experts + expert, mask=expert < num_experts, other=-float("inf"))
    peak = tl.max(logit, 1)
    raised = tl.exp(logit - peak[:, None])
    total = tl.sum(raised, 1)
    probability = raised / total[:, None]
    score = probability if SCORE == "softmax" else tl.sigmoid(logit)
    return score, probability, peak + tl.log(total)


@triton.jit(do_not_specialize=["num_tokens"])
def route_kernel(
    logit_ptr, is_token_ptr, bias_ptr, expert_ptr, gate_ptr, count_ptr, share_ptr, square_ptr, num_tokens,
    num_experts, TOP_K: tl.constexpr, SCORE: tl.constexpr, NORMALIZE: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Route a block of a row's tokens. The sums are [rows, programs of a row, ...]."""
    row, token = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    expert, slot = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    score, _, lse = _scores(logit_ptr, row, token, num_tokens, num_experts, BLOCK_E, SCORE)
    inside = token < num_tokens
    is_token = tl.load(is_token_ptr + row * num_tokens + token, mask=inside, other=0).to(tl.int1)

    is_expert = expert < num_experts
    rank = score + tl.load(bias_ptr + expert, mask=is_expert, other=0.0)[None, :]
    # NaN ranks first, as in torch.topk, so that K experts are chosen for any logits.
    rank = tl.where(rank != rank, float("inf"), rank)
    rank = tl.where(is_expert[None, :], rank, -float("inf"))
    chosen = tl.zeros([BLOCK_T, BLOCK_E], dtype=tl.int32)
    experts = tl.zeros([BLOCK_T, BLOCK_K], dtype=tl.int32)
    gates = tl.zeros([BLOCK_T, BLOCK_K], dtype=tl.float32)
    for k in tl.static_range(TOP_K):
        best = tl.argmax(rank, 1, tie_break_left=True)
        is_best = expert[None, :] == best[:, None]
        value = tl.sum(tl.where(is_best, score, 0.0), 1)
        experts = tl.where(slot[None, :] == k, best[:, None], experts)
        gates = tl.where(slot[None, :] == k, value[:, None], gates)
        chosen += is_best.to(tl.int32)
        rank = tl.where(is_best, -float("inf"), rank)
    if NORMALIZE:
        gates = gates / tl.sum(gates, 1)[:, None]
    at = (row * num_tokens + token)[:, None] * TOP_K + slot[None, :]
    stored = inside[:, None] & (slot[None, :] < TOP_K)
    tl.store(expert_ptr + at, experts.to(tl.int64), mask=stored)
    tl.store(gate_ptr + at, gates, mask=stored)

    if SCORE == "sigmoid":
        score = score / tl.sum(score, 1)[:, None]
    place = row * tl.num_programs(0) + tl.program_id(0)
    at = place * num_experts + expert
    tl.store(count_ptr + at, tl.sum(tl.where(is_token[:, None], chosen, 0), 0), mask=is_expert)
    tl.store(share_ptr + at, tl.sum(tl.where(is_token[:, None], score, 0.0), 0), mask=is_expert)
    tl.store(square_ptr + place, tl.sum(tl.where(is_token, lse * lse, 0.0), 0))


@triton.jit(do_not_specialize=["num_tokens"])
def route_gradient_kernel(
    logit_ptr, is_token_ptr, expert_ptr, grad_gate_ptr, grad_share_ptr, grad_square_ptr, grad_logit_ptr,
    num_tokens, num_experts, TOP_K: tl.constexpr, SCORE: tl.constexpr, NORMALIZE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The gradient of a block's logits, from the gradients of the gates and of the sums."""
    row, token = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    expert = tl.arange(0, BLOCK_E)
    score, probability, lse = _scores(logit_ptr, row, token, num_tokens, num_experts, BLOCK_E, SCORE)
    inside = token < num_tokens
    is_token = tl.load(is_token_ptr + row * num_tokens + token, mask=inside, other=0).to(tl.int1)[:, None]

    chosen = tl.zeros([BLOCK_T, BLOCK_E], dtype=tl.int32)
    grad = tl.zeros([BLOCK_T, BLOCK_E], dtype=tl.float32)
    for k in tl.static_range(TOP_K):
        at = (row * num_tokens + token) * TOP_K + k
        is_chosen = expert[None, :] == tl.load(expert_ptr + at, mask=inside, other=0)[:, None]
        grad += tl.where(is_chosen, tl.load(grad_gate_ptr + at, mask=inside, other=0.0)[:, None], 0.0)
        chosen += is_chosen.to(tl.int32)
    if NORMALIZE:
        kept = tl.where(chosen > 0, score, 0.0)
        total = tl.sum(kept, 1)[:, None]
        grad = tl.where(chosen > 0, (grad - tl.sum(grad * kept, 1)[:, None] / total) / total, 0.0)
    place = row * tl.num_programs(0) + tl.program_id(0)
    at = place * num_experts + expert
    grad_share = tl.load(grad_share_ptr + at, mask=expert < num_experts, other=0.0)[None, :]
    if SCORE == "softmax":
        grad += tl.where(is_token, grad_share, 0.0)
        grad_logit = score * (grad - tl.sum(grad * score, 1)[:, None])
    else:
        total = tl.sum(score, 1)[:, None]
        mean = tl.sum(grad_share * score, 1)[:, None] / total
        grad += tl.where(is_token, (grad_share - mean) / total, 0.0)
        grad_logit = score * (1 - score) * grad
    slope = 2 * lse[:, None] * tl.load(grad_square_ptr + place)
    grad_logit += tl.where(is_token, slope * probability, 0.0)
    at = (row * num_tokens + token)[:, None] * num_experts + expert[None, :]
    tl.store(grad_logit_ptr + at, grad_logit, mask=inside[:, None] & (expert < num_experts)[None, :])


def _blocks(num_experts: int) -> tuple[int, int]:
    """Number of tokens of a program, and of experts rounded up."""
    experts = triton.next_power_of_2(num_experts)
    return min(max(_ELEMENTS // experts, 1), 64), experts


def launch_route(
    logit_BTE: Tensor, is_token_BT: Tensor, bias_E: Tensor, top_k: int, score: str, normalize: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `router.route`.

    Returns:
        gate_BTK; the sums share_BPE and square_BP of each of a row's P programs; expert_BTK; and count_BPE in
        int32, of the programs too.
    """
    logit_BTE, is_token_BT, bias_E = (x.contiguous() for x in (logit_BTE, is_token_BT, bias_E))
    num_rows, num_tokens, num_experts = logit_BTE.shape
    tokens, experts = _blocks(num_experts)
    programs = triton.cdiv(num_tokens, tokens)
    gate_BTK = logit_BTE.new_empty(num_rows, num_tokens, top_k)
    expert_BTK = torch.empty_like(gate_BTK, dtype=torch.int64)
    share_BPE = logit_BTE.new_empty(num_rows, programs, num_experts)
    count_BPE = torch.empty_like(share_BPE, dtype=torch.int32)
    square_BP = logit_BTE.new_empty(num_rows, programs)
    if gate_BTK.numel() > 0:
        route_kernel[(programs, num_rows)](
            logit_BTE, is_token_BT, bias_E, expert_BTK, gate_BTK, count_BPE, share_BPE, square_BP, num_tokens,
            num_experts, TOP_K=top_k, SCORE=score, NORMALIZE=normalize, BLOCK_T=tokens, BLOCK_E=experts,
            BLOCK_K=triton.next_power_of_2(top_k),
        )  # fmt: skip
    return gate_BTK, share_BPE, square_BP, expert_BTK, count_BPE


def launch_route_backward(
    grad_gate_BTK: Tensor,
    grad_share_BPE: Tensor,
    grad_square_BP: Tensor,
    logit_BTE: Tensor,
    is_token_BT: Tensor,
    expert_BTK: Tensor,
    score: str,
    normalize: bool,
) -> Tensor:
    """The logits' gradient, from those of the gates and of each program's sums."""
    given = (logit_BTE, is_token_BT, expert_BTK, grad_gate_BTK, grad_share_BPE, grad_square_BP)
    pointers = [x.contiguous() for x in given]
    num_rows, num_tokens, num_experts = logit_BTE.shape
    grad_logit_BTE = torch.empty_like(pointers[0])
    if grad_logit_BTE.numel() > 0:
        tokens, experts = _blocks(num_experts)
        route_gradient_kernel[(triton.cdiv(num_tokens, tokens), num_rows)](
            *pointers, grad_logit_BTE, num_tokens, num_experts, TOP_K=expert_BTK.shape[-1], SCORE=score,
            NORMALIZE=normalize, BLOCK_T=tokens, BLOCK_E=experts,
        )  # fmt: skip
    return grad_logit_BTE


route = Operator("reptrain_kernels::route", launch_route)
route_backward = Operator("reptrain_kernels::route_backward", launch_route_backward)


@route.register_fake
def _shapes_of_routed(
    logit_BTE: Tensor, is_token_BT: Tensor, bias_E: Tensor, top_k: int, score: str, normalize: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    num_rows, num_tokens, num_experts = logit_BTE.shape
    programs = (num_tokens + _blocks(num_experts)[0] - 1) // _blocks(num_experts)[0]
    gate_BTK = logit_BTE.new_empty(num_rows, num_tokens, top_k)
    share_BPE = logit_BTE.new_empty(num_rows, programs, num_experts)
    return (
        gate_BTK,
        share_BPE,
        logit_BTE.new_empty(num_rows, programs),
        torch.empty_like(gate_BTK, dtype=torch.int64),
        torch.empty_like(share_BPE, dtype=torch.int32),
    )


@route_backward.register_fake
def _shape_of_gradient(
    grad_gate_BTK: Tensor, grad_share_BPE: Tensor, grad_square_BP: Tensor, logit_BTE: Tensor, *others: Any
) -> Tensor:
    return logit_BTE.new_empty(logit_BTE.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logit_BTE, is_token_BT, _, _, *ctx.how = inputs
    ctx.save_for_backward(logit_BTE, is_token_BT, output[3])
    ctx.mark_non_differentiable(*output[3:])


def _backward(
    ctx: Any, grad_gate_BTK: Tensor, grad_share_BPE: Tensor, grad_square_BP: Tensor, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    grads = (grad_gate_BTK, grad_share_BPE, grad_square_BP)
    return route_backward(*grads, *ctx.saved_tensors, *ctx.how), None, None, None, None, None


route.register_autograd(_backward, setup_context=_keep)
