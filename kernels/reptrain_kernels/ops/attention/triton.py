"""`attention` in Triton, registered as torch operators: torch.compile does not break the graph at them.

Three kernels: the forward pass, which stores the logarithm of each query's sum of weights; the gradients of
queries and bias; the gradients of keys and values. Shapes as in `attention`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from reptrain_kernels.implementation import capability, matmul_precision
from reptrain_kernels.layout import contiguous
from reptrain_kernels.operator import Operator
from reptrain_kernels.ops.attention import backward_kernels, kernels
from reptrain_kernels.ops.attention.tiles import Pass, Tiles, attention_tiles, block_width
from reptrain_kernels.rates import unpacked

_LOG2E = 1 / math.log(2)
_CHUNK = 1024
# CUDA's limit for the second axis of a grid.
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
    """The bias in units of log 2, padded to all offsets of near tiles; E; and the largest padded offset."""
    if bias_HR is None:
        return None, 1, 1
    end, beyond = bias_HR.shape[1] // 2, tiles.queries + tiles.keys
    return F.pad(bias_HR.float() * _LOG2E, (beyond, beyond), mode="replicate"), end, end + beyond


class _Inputs(NamedTuple):
    """The inputs of attention in the memory layout that the kernels read."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias_HR: Tensor | None
    segments_BT: Tensor | None
    segments_BS: Tensor | None
    prefix_BT: Tensor | None
    key_BH: Tensor | None
    scale: float
    causal: bool

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias_HR: Tensor | None,
        masks: tuple[Tensor | None, Tensor | None, Tensor | None],
        key_BH: Tensor | None,
        scale: float,
        causal: bool,
    ) -> _Inputs:
        """Copy what is not contiguous; ``masks``: segments of queries and of keys, prefix lengths."""
        q, k, v = (_readable(x) for x in (q, k, v))
        return cls(q, k, v, bias_HR, *contiguous(*masks, key_BH), scale, causal)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of row, head and position, of q, k and v."""
        return (*self.q.stride()[:3], *self.k.stride()[:3], *self.v.stride()[:3])

    def spans(self, tiles: Tiles, *, of_keys: bool = False) -> Tensor | None:
        """The range of keys that each block of queries visits, [B, blocks, 2].

        Args:
            tiles: Sizes of the blocks.
            of_keys: The range of queries that each block of keys visits instead.

        Returns:
            None if the causal mask, or its absence, gives the ranges.
        """
        own, other, block = self.segments_BT, self.segments_BS, tiles.queries
        num_positions, num_others = self.q.shape[2], self.k.shape[2]
        if of_keys:
            own, other, block = other, own, tiles.keys
            num_positions, num_others = num_others, num_positions
        if own is None and self.prefix_BT is None:
            return None
        num_rows, num_blocks = len(self.q), triton.cdiv(num_positions, block)
        span = torch.empty(num_rows, num_blocks, 2, dtype=torch.int32, device=self.q.device)
        kernels.span_kernel[(num_blocks, num_rows)](
            own, other, self.prefix_BT, span, num_positions, num_others,
            OF_KEYS=of_keys, CAUSAL=self.causal, BLOCK=block, CHUNK=_CHUNK,
        )  # fmt: skip
        return span

    def constants(self, tiles: Tiles) -> dict[str, Any]:
        """Compile-time arguments of a kernel."""
        T, S, N = self.q.shape[2], self.k.shape[2], self.q.shape[3]
        return {
            "CAUSAL": self.causal,
            "N": N,
            "BLOCK_N": block_width(N),
            "BLOCK_T": tiles.queries,
            "BLOCK_S": tiles.keys,
            "EVEN_T": T % tiles.queries == 0,
            "EVEN_S": S % tiles.keys == 0,
            "PRECISION": matmul_precision(self.q.dtype),
            "num_warps": tiles.num_warps,
            "num_stages": tiles.num_stages,
        }


def _new(like_BHTN: Tensor) -> Tensor:
    """A tensor [B, H, T, N] in the memory layout [B, T, H, N], which the projections use."""
    B, H, T, N = like_BHTN.shape
    return like_BHTN.new_empty(B, T, H, N).transpose(1, 2)


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
        y_BHTN, and lse_BHT in fp32: log2 of each query's sum of exp(score), inf if no key is visible.
    """
    masks = (segments_BT, segments_BS, prefix_BT)
    inputs = _Inputs.of(q_BHTN, k_BKSN, v_BKSN, bias_HR, masks, key_BH, scale, causal)
    q, k, v = inputs[:3]
    (B, H, T, _), (_, K, S, _) = q.shape, k.shape
    if B * H > _MOST_HEADS:
        raise ValueError(f"q: rows x heads must be at most {_MOST_HEADS}, but got {B} x {H}")
    y, lse = _new(q), q.new_empty(B, H, T, dtype=torch.float32)
    if y.numel() == 0:
        return y, lse
    tiles = _tiles("forward", q, bias_HR)
    bias, end, reach = _bias(bias_HR, tiles)
    kernels.forward_kernel[(triton.cdiv(T, tiles.queries), B * H)](
        q, k, v, y, lse, bias, *inputs[4:8], inputs.spans(tiles), *inputs.strides,
        T, S, H, H // K, end, reach, scale * _LOG2E, *unpacked(rate_2), **inputs.constants(tiles),
    )  # fmt: skip
    return y, lse


attention_forward = Operator("reptrain_kernels::attention_forward", launch_forward)


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
    masks = (segments_BT, segments_BS, prefix_BT)
    inputs = _Inputs.of(q_BHTN, k_BKSN, v_BKSN, bias_HR, masks, key_BH, scale, causal)
    if q_BHTN.numel() == 0 or k_BKSN.numel() == 0:
        zeros = (_new(q_BHTN).zero_(), _new(k_BKSN).zero_(), _new(v_BKSN).zero_())
        return *zeros, _new_bias_gradient(q_BHTN, bias_HR).zero_()
    grad = _readable(grad_BHTN)
    grad_q, grad_bias, delta, line_key = _query_gradient(inputs, grad, y_BHTN, lse_BHT, rate_2)
    grad_k, grad_v = _key_gradient(inputs, grad, lse_BHT, delta, line_key, rate_2)
    return grad_q, grad_k, grad_v, grad_bias


def _new_bias_gradient(q: Tensor, bias_HR: Tensor | None) -> Tensor:
    return q.new_empty(0 if bias_HR is None else bias_HR.shape, dtype=torch.float32)


def _query_gradient(
    inputs: _Inputs, grad: Tensor, y_BHTN: Tensor, lse_BHT: Tensor, rate_2: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Launch the kernels of the queries and of the bias.

    Returns:
        The gradients of q and of the bias, and for the keys delta_BHT, in fp32, and the dropout keys of the
        queries, int64 [B, H, T]; None without dropout.
    """
    q, k, v = inputs[:3]
    (B, H, T, _), (_, K, S, _) = q.shape, k.shape
    grad_q, grad_bias = _new(q), _new_bias_gradient(q, inputs.bias_HR)
    delta = torch.empty_like(lse_BHT)
    line_key = None if inputs.key_BH is None else torch.empty_like(lse_BHT, dtype=torch.int64)
    tiles = _tiles("query_gradient", q, inputs.bias_HR)
    bias, end, reach = _bias(inputs.bias_HR, tiles)
    num_tiles = triton.cdiv(T, tiles.queries)
    first_slot, slots = bias_slots(end, tiles)
    partial, width = None, tiles.queries + tiles.keys
    if bias is not None:
        partial = lse_BHT.new_zeros(B, H, num_tiles, slots * width + 2)
    backward_kernels.query_gradient_kernel[(num_tiles, B * H)](
        q, k, v, y_BHTN, grad, lse_BHT, bias, *inputs[4:8], inputs.spans(tiles), grad_q, delta, line_key,
        partial, *inputs.strides, *grad.stride()[:3], T, S, H, H // K, end, reach,
        inputs.scale, inputs.scale * _LOG2E, *unpacked(rate_2), **inputs.constants(tiles),
        SLOTS=slots, FIRST_SLOT=first_slot,
    )  # fmt: skip
    if partial is not None:
        backward_kernels.bias_gradient_kernel[(H,)](
            partial.sum((0, 2)), grad_bias, end, BLOCK_T=tiles.queries, BLOCK_S=tiles.keys,
            SLOTS=slots, FIRST_SLOT=first_slot, OFFSETS=triton.next_power_of_2(2 * (end + width)),
        )  # fmt: skip
    return grad_q, grad_bias, delta, line_key


def _key_gradient(
    inputs: _Inputs,
    grad: Tensor,
    lse_BHT: Tensor,
    delta_BHT: Tensor,
    line_key_BHT: Tensor | None,
    rate_2: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel of the keys and values after `_query_gradient`; returns the gradients of k and v."""
    q, k, v = inputs[:3]
    (_, H, T, _), (B, K, S, _) = q.shape, k.shape
    grad_k, grad_v = _new(k), _new(v)
    tiles = _tiles("key_gradient", q, inputs.bias_HR)
    bias, end, reach = _bias(inputs.bias_HR, tiles)
    backward_kernels.key_gradient_kernel[(triton.cdiv(S, tiles.keys), B * K)](
        q, k, v, grad, lse_BHT, delta_BHT, line_key_BHT, bias, *inputs[4:7],
        inputs.spans(tiles, of_keys=True), grad_k, grad_v, *inputs.strides, *grad.stride()[:3],
        T, S, K, H // K, end, reach, inputs.scale, inputs.scale * _LOG2E, *unpacked(rate_2),
        **inputs.constants(tiles),
    )  # fmt: skip
    return grad_k, grad_v


def bias_slots(end: int, tiles: Tiles) -> tuple[int, int]:
    """Near tiles of a tile of queries: the number before the one on the main diagonal, and in total."""
    below = (end + tiles.keys - 2) // tiles.keys
    return below, below + 1 + (tiles.queries + end - 2) // tiles.keys


attention_backward = Operator("reptrain_kernels::attention_backward", launch_backward)


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
    return _new(q_BHTN), _new(k_BKSN), _new(v_BKSN), _new_bias_gradient(q_BHTN, bias_HR)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output, *inputs[3:9])
    ctx.numbers = inputs[9:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # The gradient of lse is None, not zeros.


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 11
    # Once only: under recomputation each look at them would compute them again.
    saved = ctx.saved_tensors
    grad_q, grad_k, grad_v, grad_bias = attention_backward(grad, *saved, *ctx.numbers)
    grad_of_bias = None if saved[5] is None else grad_bias.to(saved[5].dtype)
    return grad_q, grad_k, grad_v, grad_of_bias, *(None,) * 7


attention_forward.register_autograd(_backward, setup_context=_keep)
