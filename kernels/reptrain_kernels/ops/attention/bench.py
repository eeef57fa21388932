"""Attention at the shapes of published models: compiled, modeled, timed.

Sizes: B rows, T queries, S keys, H heads, K key-value heads, N width of a head, E end of the bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reptrain_kernels.bench.operation import (
    DROPOUT_INTEGERS,
    Operation,
    Ways,
    Work,
    compiled_way,
    element_bytes,
    own_ways,
)
from reptrain_kernels.implementation import Implementation
from reptrain_kernels.ops.attention import AttentionMask, attention
from reptrain_kernels.ops.attention.tiles import Pass, Tiles, attention_tiles

# Where T5's buckets end: 32 of them to distance 128, in both directions or in one.
T5_ENDS = {"encoder": 91, "decoder": 113}


class AttentionShape(NamedTuple):
    """One attention of a model."""

    name: str
    H: int
    K: int
    N: int
    B: int = 16
    T: int = 512
    S: int = 512
    E: int = 0
    causal: bool = False
    segments: bool = True
    rate: float = 0.0
    dtype: torch.dtype = torch.bfloat16


def t5(model: str, H: int, rate: float = 0.0, N: int = 64, **changes: object) -> list[AttentionShape]:
    """The three attentions of a T5."""
    what = f"{model}{' dropout' if rate else ''}"
    common = {"H": H, "K": H, "N": N, "rate": rate} | changes
    return [
        AttentionShape(f"{what} encoder", **common, E=T5_ENDS["encoder"]),
        AttentionShape(f"{what} decoder", **common, E=T5_ENDS["decoder"], causal=True),
        AttentionShape(f"{what} cross", **common),
    ]


ATTENTION = [
    *t5("T5-Base", 12),
    *t5("T5-Base", 12, 0.1),
    AttentionShape("T5-Base encoder of 2048", 12, 12, 64, B=4, T=2048, S=2048, E=T5_ENDS["encoder"]),
    AttentionShape("T5-Base encoder of 4096", 12, 12, 64, B=2, T=4096, S=4096, E=T5_ENDS["encoder"]),
    *t5("T5-Large", 16, 0.1),
    *t5("T5-XL", 32, 0.1),
    *t5("T5-11B (1.0)", 128, 0.1, N=128),
    AttentionShape("Llama-1B", 32, 4, 64, B=4, T=2048, S=2048, causal=True),
    AttentionShape("Llama-1B dropout", 32, 4, 64, B=4, T=2048, S=2048, causal=True, rate=0.1),
    AttentionShape("Llama-7B", 32, 32, 128, B=2, T=2048, S=2048, causal=True),
    AttentionShape("Llama-7B dropout", 32, 32, 128, B=2, T=2048, S=2048, causal=True, rate=0.1),
    AttentionShape("head 256", 8, 8, 256, E=91, rate=0.1),
    AttentionShape("T5-Base fp32", 12, 12, 64, E=91, rate=0.1, dtype=torch.float32),
]


class AttentionTensors(NamedTuple):
    """What `attention` is called with."""

    q_BHTN: Tensor
    k_BKSN: Tensor
    v_BKSN: Tensor
    bias_HR: Tensor | None
    mask: AttentionMask
    key_BH: Tensor | None


def attention_tensors(shape: AttentionShape, device: str) -> AttentionTensors:
    """Random tensors as a model's projections leave them; one document fills each row."""
    on = {"device": device}

    def heads(number: int, positions: int) -> Tensor:
        x_BTHN = torch.randn(shape.B, positions, number, shape.N, dtype=shape.dtype, **on)
        return x_BTHN.transpose(1, 2)

    mask = AttentionMask(causal=shape.causal)
    if shape.segments:
        read_BS = torch.ones(shape.B, shape.S, dtype=torch.int64, **on)
        mask = mask._replace(segments_BT=torch.ones_like(read_BS[:, :1]).expand(-1, shape.T).contiguous())
        mask = mask._replace(segments_BS=read_BS)
    key_BH = torch.ones(shape.B, shape.H, dtype=torch.int64, **on) if shape.rate else None
    bias_HR = torch.randn(shape.H, 2 * shape.E + 1, **on) if shape.E else None
    return AttentionTensors(
        heads(shape.H, shape.T), heads(shape.K, shape.S), heads(shape.K, shape.S), bias_HR, mask, key_BH
    )


def attention_launch(shape: AttentionShape) -> Callable[[], object]:
    """A call that would launch the forward and the backward kernels, on tensors without memory."""
    from reptrain_kernels.ops.attention.triton import launch_backward, launch_forward

    q, k, v, bias, mask, key = attention_tensors(shape, "meta")
    rest = (bias, mask.segments_BT, mask.segments_BS, None, key, None, 1.0, shape.causal)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    return lambda: (launch_forward(q, k, v, *rest), launch_backward(q, q, k, v, q, lse, *rest))


def _pairs(shape: AttentionShape) -> float:
    """Pairs of a query and a key that it sees."""
    visible = shape.T * (shape.T + 1) / 2 if shape.causal else shape.T * shape.S
    return shape.B * shape.H * visible


def attention_needed(shape: AttentionShape) -> list[Work]:
    """Forward and backward: each tensor moved once, two and five products, each weight made once a pass."""
    pairs, size = _pairs(shape), element_bytes(shape.dtype)
    queries = shape.B * shape.H * shape.T * shape.N * size
    keys = shape.B * shape.K * shape.S * shape.N * size
    lse = shape.B * shape.H * shape.T * 4
    integers = DROPOUT_INTEGERS if shape.rate else 0
    products, tensors = 2 * pairs * shape.N, 2 * (queries + keys)
    # Scale, peak, difference, sum, and a cast of two at once. Back: scale, difference, the score's gradient.
    return [
        Work("forward", 2 * products, 4.5 * pairs, integers * pairs, pairs, 0, tensors + lse),
        Work("backward", 5 * products, 5 * pairs, integers * pairs, pairs, 0, 2 * tensors + lse),
    ]


class _Tiling(NamedTuple):
    """How a kernel walks: ``held`` positions stay in a program, ``passed`` ones go by."""

    tiles: Tiles
    held: int
    passed: int
    products: int
    from_shared: int
    """Products whose left side is read from shared memory, not from registers."""


def _tiling(which: Pass, tiles: Tiles) -> _Tiling:
    if which == "forward":
        return _Tiling(tiles, tiles.queries, tiles.keys, 2, 1)
    if which == "query_gradient":
        return _Tiling(tiles, tiles.queries, tiles.keys, 3, 2)
    return _Tiling(tiles, tiles.keys, tiles.queries, 4, 2)


def _visited(shape: AttentionShape, tiling: _Tiling) -> float:
    """Tiles that are visited, those that are partly visible whole."""
    t, s = tiling.tiles.queries, tiling.tiles.keys
    if not shape.causal:
        return shape.B * shape.H * math.ceil(shape.T / t) * math.ceil(shape.S / s)
    rows = range(math.ceil(shape.T / t))
    return shape.B * shape.H * sum(math.ceil(min((row + 1) * t, shape.S) / s) for row in rows)


def _near_share(shape: AttentionShape, tiling: _Tiling) -> float:
    """The share of visited tiles that are near (see `attention_kernels`), an upper bound."""
    t, s = tiling.tiles.queries, tiling.tiles.keys
    reach = (shape.E or 1) * (1 if shape.causal else 2) + t + s
    return min(1.0, reach / (shape.S / 2 if shape.causal else shape.S))


def attention_moved(shape: AttentionShape, capability: int) -> list[list[Work]]:
    """The three kernels, one forward and two backward."""
    size = element_bytes(shape.dtype)
    queries = shape.B * shape.H * shape.T * shape.N * size
    keys = shape.B * shape.K * shape.S * shape.N * size
    line = shape.B * shape.H * shape.T * 4
    memory = {
        "forward": 2 * queries + 2 * keys + line,
        "query_gradient": 4 * queries + 2 * keys + 2 * line + (2 * line if shape.rate else 0),
        "key_gradient": 2 * queries + 4 * keys + 2 * line + (2 * line if shape.rate else 0),
    }
    kernels = [_kernel(shape, which, capability, memory[which]) for which in memory]
    return [kernels[:1], kernels[1:]]


def _kernel(shape: AttentionShape, which: Pass, capability: int, memory_bytes: float) -> Work:
    size = element_bytes(shape.dtype)
    tiling = _tiling(which, attention_tiles(which, shape.N, size, capability, shape.E > 0))
    t, s = tiling.tiles.queries, tiling.tiles.keys
    tiles, near = _visited(shape, tiling), _near_share(shape, tiling)
    # A warp of sm_80 computes 16 lines: more warps than lines for them repeat each other's work.
    repeated = max(1.0, 16 * tiling.tiles.num_warps / tiling.held) if capability < 90 else 1.0
    pairs = tiles * t * s * repeated
    # sm_80: each warp reads the right side of a product for its own lines; sm_90: each group of four does.
    readers = tiling.tiles.num_warps if capability < 90 else max(1, tiling.held // 64)
    right = tiling.products * readers * tiling.passed * shape.N * size
    left = tiling.from_shared * tiling.held * shape.N * size
    staged = 2 * tiling.passed * shape.N * size
    floats, integers = {"forward": 4.5, "query_gradient": 4.5, "key_gradient": 5.0}[which], 0.0
    if which == "forward":
        floats += shape.N / s  # The running output is scaled at each tile.
    if shape.E:
        floats += 1
        integers += 2 * near  # The address of a bias.
    if shape.E and which == "query_gradient":
        # Far: one sum. Near: turned by a shuffle, then chosen and summed for each block of diagonals.
        floats += (1 - near) + near * (t // s + 1)
        integers += near * (2 + 2 * (t // s + 1))
    integers += 2 * (shape.segments + (near if shape.causal else 0))
    integers += DROPOUT_INTEGERS if shape.rate else 0
    return Work(
        which,
        2 * tiling.products * pairs * shape.N,
        floats * pairs,
        integers * pairs,
        pairs,
        tiles * (right + left + staged),
        memory_bytes,
    )


def attention_ways(shape: AttentionShape, device: str) -> Ways:
    """Ours; the definition, eager and compiled; torch's flash attention without bias, segments and dropout,
    which is the measure; and flex attention with bias and segments, where nothing is dropped."""
    given = attention_tensors(shape, device)
    q, k, v = (x.requires_grad_() for x in given[:3])
    biases = [] if given.bias_HR is None else [given.bias_HR.requires_grad_()]

    def call(impl: Implementation) -> Tensor:
        return attention(
            q, k, v, scale=1.0, mask=given.mask._replace(bias_HR=given.bias_HR), key_BH=given.key_BH,
            rate=shape.rate, impl=impl,
        )  # fmt: skip

    calls = own_ways(call)
    calls["sdpa alone"] = lambda: F.scaled_dot_product_attention(
        q, k, v, is_causal=shape.causal, scale=1.0, enable_gqa=True
    )
    if not shape.rate:
        calls["flex_attention"] = _flex_way(shape, given)
    return Ways([q, k, v, *biases], calls, frozenset({"sdpa alone"}))


def _flex_way(shape: AttentionShape, given: AttentionTensors) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    bias_HR, end = given.bias_HR, shape.E
    asking, asked = given.mask.segments_BT, given.mask.key_segments()

    def visible(b: Tensor, _: Tensor, t: Tensor, s: Tensor) -> Tensor:
        seen = t >= s if shape.causal else t >= 0
        return seen if asking is None else seen & (asking[b, t] == asked[b, s])

    def biased(score: Tensor, _: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return score + bias_HR[h, (s - t).clamp(-end, end) + end]

    device = given.q_BHTN.device
    mask = create_block_mask(visible, shape.B, None, shape.T, shape.S, device=device)
    return compiled_way(
        lambda: flex_attention(
            *given[:3], score_mod=biased if end else None, block_mask=mask, scale=1.0, enable_gqa=True
        )
    )


OPERATION = Operation(
    name="attention",
    shapes=ATTENTION,
    launch=attention_launch,
    needed=attention_needed,
    moved=attention_moved,
    ways=attention_ways,
    shown=(
        "T5-Base encoder",
        "T5-Base encoder of 2048",
        "T5-Base encoder of 4096",
        "T5-Base dropout encoder",
        "T5-Base dropout decoder",
        "T5-11B (1.0) dropout decoder",
        "Llama-1B",
        "Llama-7B dropout",
        "head 256",
        "T5-Base fp32",
    ),
    matrix_kernels=frozenset({"forward", "query_gradient", "key_gradient"}),
    on_blackwell=frozenset({"T5-Base encoder"}),
)
