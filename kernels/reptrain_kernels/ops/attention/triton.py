"""`attention` in Triton, registered as torch operators so that torch.compile takes it whole.

Three kernels: the forward pass, which keeps a number for each query (the logarithm of its sum of weights);
the queries' gradient with the bias's; the keys' and values' gradient. Shapes as in `attention`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from reptrain_kernels.implementation import capability, matmul_precision
from reptrain_kernels.ops.attention import backward_kernels, kernels
from reptrain_kernels.ops.attention.tiles import Pass, Tiles, attention_tiles, block_width
from reptrain_kernels.rates import unpacked

_LOG2E = 1 / math.log(2)
_CHUNK = 1024
# CUDA's limit to the second axis of a grid.
_MOST_HEADS = 65535


def _tiles(which: Pass, q_BHTN: Tensor, bias_HR: Tensor | None) -> Tiles:
    chip = capability(q_BHTN.device)
    return attention_tiles(which, q_BHTN.shape[-1], q_BHTN.element_size(), chip, bias_HR is not None)


def _readable(x: Tensor) -> Tensor:
    """``x`` with a contiguous last axis."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    if x.shape[2] * x.stride(2) >= 2**31:
        raise ValueError(f"q, k, v: a head must span fewer than 2**31 elements, but has strides {x.stride()}")
    return x


def _bias(bias_HR: Tensor | None, tiles: Tiles) -> tuple[Tensor | None, int, int]:
    """The bias as the kernels read it, E, and how far it reaches: beyond every offset of a near tile."""
    if bias_HR is None:
        return None, 1, 1
    end, beyond = bias_HR.shape[1] // 2, tiles.queries + tiles.keys
    return F.pad(bias_HR.float() * _LOG2E, (beyond, beyond), mode="replicate"), end, end + beyond


def _contiguous(*optional: Tensor | None) -> list[Tensor | None]:
    return [x if x is None else x.contiguous() for x in optional]


def _spans(
    asking: Tensor | None,
    asked: Tensor | None,
    prefix_BT: Tensor | None,
    sizes: tuple[int, int, int],
    *,
    keys_ask: bool,
    causal: bool,
    block: int,
) -> Tensor | None:
    """The range that each block of queries (or keys) visits, [B, blocks, 2]; None: by the causal mask."""
    shown = asking if asking is not None else prefix_BT
    if shown is None:
        return None
    num_rows, num_asking, num_asked = sizes
    num_blocks = triton.cdiv(num_asking, block)
    span = torch.empty(num_rows, num_blocks, 2, dtype=torch.int32, device=shown.device)
    kernels.span_kernel[(num_blocks, num_rows)](
        asking,
        asked,
        prefix_BT,
        span,
        num_asking,
        num_asked,
        KEYS_ASK=keys_ask,
        CAUSAL=causal,
        BLOCK=block,
        CHUNK=_CHUNK,
    )
    return span


def _new(like_BHTN: Tensor) -> Tensor:
    """A tensor [B, H, T, N] with the memory layout [B, T, H, N], which projections read and write."""
    B, H, T, N = like_BHTN.shape
    return like_BHTN.new_empty(B, T, H, N).transpose(1, 2)


def _constants(tiles: Tiles, q_BHTN: Tensor, k_BKSN: Tensor, causal: bool) -> dict[str, Any]:
    T, S, N = q_BHTN.shape[2], k_BKSN.shape[2], q_BHTN.shape[3]
    return {
        "CAUSAL": causal,
        "N": N,
        "BLOCK_N": block_width(N),
        "BLOCK_T": tiles.queries,
        "BLOCK_S": tiles.keys,
        "EVEN_T": T % tiles.queries == 0,
        "EVEN_S": S % tiles.keys == 0,
        "PRECISION": matmul_precision(q_BHTN.dtype),
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }


def launch_forward(
    q_BHTN: Tensor,
    k_BKSN: Tensor,
    v_BKSN: Tensor,
    bias_HR: Tensor | None,
    segments_BT: Tensor | None,
    segments_BS: Tensor | None,
    prefix_BT: Tensor | None,
    key_BH: Tensor | None,
    rate_2: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """See `attention.attention`; the rate is packed, and None without keys.

    Returns:
        y_BHTN, and lse_BHT in fp32: log2 of each query's sum of exp(score), inf where it sees no key.
    """
    q, k, v = (_readable(x) for x in (q_BHTN, k_BKSN, v_BKSN))
    (B, H, T, _), (_, K, S, _) = q.shape, k.shape
    if B * H > _MOST_HEADS:
        raise ValueError(f"q: rows x heads must be at most {_MOST_HEADS}, but got {B} x {H}")
    segments_i, segments_j, prefix, key = _contiguous(segments_BT, segments_BS, prefix_BT, key_BH)
    y, lse = _new(q), q.new_empty(B, H, T, dtype=torch.float32)
    if y.numel() == 0:
        return y, lse
    tiles = _tiles("forward", q, bias_HR)
    bias, end, reach = _bias(bias_HR, tiles)
    span = _spans(
        segments_i, segments_j, prefix, (B, T, S), keys_ask=False, causal=causal, block=tiles.queries
    )
    kernels.forward_kernel[(triton.cdiv(T, tiles.queries), B * H)](
        q, k, v, y, lse, bias, segments_i, segments_j, prefix, key, span,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        T, S, H, H // K, end, reach, scale * _LOG2E, *unpacked(rate_2),
        **_constants(tiles, q, k, causal),
    )  # fmt: skip
    return y, lse


attention_forward = torch.library.custom_op(
    "reptrain_kernels::attention_forward", launch_forward, mutates_args=()
)


@attention_forward.register_fake
def _shapes_of_forward(q_BHTN: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return _new(q_BHTN), q_BHTN.new_empty(q_BHTN.shape[:3], dtype=torch.float32)


def launch_backward(
    grad_BHTN: Tensor,
    q_BHTN: Tensor,
    k_BKSN: Tensor,
    v_BKSN: Tensor,
    y_BHTN: Tensor,
    lse_BHT: Tensor,
    bias_HR: Tensor | None,
    segments_BT: Tensor | None,
    segments_BS: Tensor | None,
    prefix_BT: Tensor | None,
    key_BH: Tensor | None,
    rate_2: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v and the bias; the last is empty without a bias."""
    q, k, v, grad = (_readable(x) for x in (q_BHTN, k_BKSN, v_BKSN, grad_BHTN))
    (B, H, T, _), (_, K, S, _) = q.shape, k.shape
    segments_i, segments_j, prefix, key = _contiguous(segments_BT, segments_BS, prefix_BT, key_BH)
    grad_q, grad_k, grad_v = _new(q), _new(k), _new(v)
    grad_bias = q.new_empty(0 if bias_HR is None else bias_HR.shape, dtype=torch.float32)
    if q.numel() == 0 or k.numel() == 0:
        return grad_q.zero_(), grad_k.zero_(), grad_v.zero_(), grad_bias.zero_()
    delta = torch.empty_like(lse_BHT)
    line_key = None if key is None else torch.empty_like(lse_BHT, dtype=torch.int64)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *grad.stride()[:3])
    numbers = (scale, scale * _LOG2E, *unpacked(rate_2))

    tiles = _tiles("query_gradient", q, bias_HR)
    bias, end, reach = _bias(bias_HR, tiles)
    num_tiles = triton.cdiv(T, tiles.queries)
    first_slot, slots = bias_slots(end, tiles)
    partial, width = None, tiles.queries + tiles.keys
    if bias is not None:
        partial = lse_BHT.new_zeros(B, H, num_tiles, slots * width + 2)
    span = _spans(
        segments_i, segments_j, prefix, (B, T, S), keys_ask=False, causal=causal, block=tiles.queries
    )
    backward_kernels.query_gradient_kernel[(num_tiles, B * H)](
        q, k, v, y_BHTN, grad, lse_BHT, bias, segments_i, segments_j, prefix, key, span,
        grad_q, delta, line_key, partial, *strides, T, S, H, H // K, end, reach, *numbers,
        **_constants(tiles, q, k, causal), SLOTS=slots, FIRST_SLOT=first_slot,
    )  # fmt: skip
    if partial is not None:
        backward_kernels.bias_gradient_kernel[(H,)](
            partial.sum((0, 2)), grad_bias, end, BLOCK_T=tiles.queries, BLOCK_S=tiles.keys,
            SLOTS=slots, FIRST_SLOT=first_slot, OFFSETS=triton.next_power_of_2(2 * (end + width)),
        )  # fmt: skip

    tiles = _tiles("key_gradient", q, bias_HR)
    bias, _, reach = _bias(bias_HR, tiles)
    span = _spans(segments_j, segments_i, prefix, (B, S, T), keys_ask=True, causal=causal, block=tiles.keys)
    backward_kernels.key_gradient_kernel[(triton.cdiv(S, tiles.keys), B * K)](
        q, k, v, grad, lse_BHT, delta, line_key, bias, segments_i, segments_j, prefix, span,
        grad_k, grad_v, *strides, T, S, K, H // K, end, reach, *numbers, **_constants(tiles, q, k, causal),
    )  # fmt: skip
    return grad_q, grad_k, grad_v, grad_bias


def bias_slots(end: int, tiles: Tiles) -> tuple[int, int]:
    """Numbers of near tiles below the main diagonal's and in total, for a tile of queries."""
    below = (end + tiles.keys - 2) // tiles.keys
    return below, below + 1 + (tiles.queries + end - 2) // tiles.keys


attention_backward = torch.library.custom_op(
    "reptrain_kernels::attention_backward", launch_backward, mutates_args=()
)


@attention_backward.register_fake
def _shapes_of_backward(
    grad_BHTN: Tensor,
    q_BHTN: Tensor,
    k_BKSN: Tensor,
    v_BKSN: Tensor,
    y_BHTN: Tensor,
    lse_BHT: Tensor,
    bias_HR: Tensor | None,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_bias = q_BHTN.new_empty(0 if bias_HR is None else bias_HR.shape, dtype=torch.float32)
    return _new(q_BHTN), _new(k_BKSN), _new(v_BKSN), grad_bias


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output, *inputs[3:9])
    ctx.numbers = inputs[9:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # No zeros for the gradient of lse, which has none.


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 11
    # Once only: under recomputation each look at them would compute them again.
    saved = ctx.saved_tensors
    grad_q, grad_k, grad_v, grad_bias = attention_backward(grad, *saved, *ctx.numbers)
    grad_of_bias = None if saved[5] is None else grad_bias.to(saved[5].dtype)
    return grad_q, grad_k, grad_v, grad_of_bias, *(None,) * 7


attention_forward.register_autograd(_backward, setup_context=_keep)
