"""The device code of the backward pass of `ops.attention.triton`. Names as in `ops.attention.kernels`."""

from __future__ import annotations

import triton
import triton.language as tl

from reptrain_kernels.counter_triton import is_kept, line_keys
from reptrain_kernels.ops.attention.kernels import (
    AT_RUN_TIME,
    NO_SEGMENT,
    load_numbers,
    load_tile,
    near_tiles,
    scores,
    store_tile,
    tile_at,
    tile_range,
    visited_range,
)


@triton.jit
def _sum_diagonals(x, sum_ptr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):
    """Store the sums along the diagonals of a tile [BLOCK_T, BLOCK_S], in blocks of BLOCK_S diagonals.

    Block w has the offsets column - line from -w BLOCK_S to (1 - w) BLOCK_S - 1. Line i is rotated left by i,
    which turns diagonals into columns; an element that has wrapped around w times belongs to block w.
    """
    column = tl.arange(0, BLOCK_S)
    rotated = tl.arange(0, BLOCK_T)[:, None] + column[None, :]
    diagonal = tl.gather(x, rotated & (BLOCK_S - 1), axis=1)
    for w in tl.static_range(BLOCK_T // BLOCK_S + 1):
        tl.store(sum_ptr + w * BLOCK_S + column, tl.sum(tl.where(rotated // BLOCK_S == w, diagonal, 0.0), 0))


@triton.jit
def _query_gradient_tiles(
    grad_q, sum_before, sum_after, q, grad_y, lse, delta, m0, low, first, stop, high, k_ptr, v_ptr, k_stride,
    v_stride, i, segment_i, segment_j_ptr, prefix_i, bias, before, after, sums, line_key, scale2, num_keys,
    threshold, kept_scale, NEAR: tl.constexpr, CAUSAL: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, EVEN_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the near or the far tiles of keys to the gradients of a tile of queries and of the bias."""
    begin, end = tile_range(low, first, stop, high, NEAR)
    for count in range(begin, end, BLOCK_S):
        n0 = tile_at(count, first, stop, NEAR)
        j = n0 + tl.arange(0, BLOCK_S)
        k = load_tile(k_ptr, k_stride, j, num_keys, N, BLOCK_N, EVEN_S)
        v = load_tile(v_ptr, v_stride, j, num_keys, N, BLOCK_N, EVEN_S)
        segment_j = None
        if segment_i is not None:
            segment_j = load_numbers(segment_j_ptr, j, num_keys, NO_SEGMENT)
        score = scores(
            tl.dot(q, k.T, input_precision=PRECISION), i, j, segment_i, segment_j, prefix_i, bias,
            tl.where(count < first, before, after), scale2, num_keys, False, NEAR, CAUSAL, EVEN_S,
        )  # fmt: skip
        weight = tl.exp2(score - lse[:, None])
        grad_weight = tl.dot(grad_y, v.T, input_precision=PRECISION)
        if line_key is not None:
            keep = is_kept(line_key[:, None], j[None, :], threshold)
            grad_weight = tl.where(keep, grad_weight * kept_scale, 0.0)
        grad_score = weight * (grad_weight - delta[:, None])
        if bias is not None:
            if NEAR:
                slot = sums + (n0 - m0) // BLOCK_S * (BLOCK_T + BLOCK_S)
                _sum_diagonals(grad_score, slot, BLOCK_T, BLOCK_S)
            else:
                sum_of_line = tl.sum(grad_score, 1)
                sum_before += tl.where(count < first, sum_of_line, 0.0)
                sum_after += tl.where(count < first, 0.0, sum_of_line)
        grad_q = tl.dot(grad_score.to(k.dtype), k, grad_q, input_precision=PRECISION)
    return grad_q, sum_before, sum_after


@triton.jit(do_not_specialize=AT_RUN_TIME)
def query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, y_ptr, grad_y_ptr, lse_ptr, bias_ptr, segment_i_ptr, segment_j_ptr, prefix_ptr,
    key_ptr, span_ptr, grad_q_ptr, delta_ptr, line_key_ptr, partial_ptr,
    q_row, q_head, q_stride, k_row, k_head, k_stride, v_row, v_head, v_stride, g_row, g_head, g_stride,
    num_queries, num_keys, num_heads, group, end, reach, scale, scale2, threshold, kept_scale,
    CAUSAL: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr, EVEN_T: tl.constexpr, EVEN_S: tl.constexpr, PRECISION: tl.constexpr,
    SLOTS: tl.constexpr, FIRST_SLOT: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries; also delta and the line keys for `key_gradient_kernel`, and partial
    sums of the bias gradient.

    grad_q and y are [B, T, H, N], delta and line keys [B, H, T]. The partial sums are
    [B, H, tiles, SLOTS * (BLOCK_T + BLOCK_S) + 2]: the sums along the diagonals of each near tile, with the
    tile on the main diagonal in slot FIRST_SLOT, then the sums of all far tiles before and after. Slots
    without a tile are not written.
    """
    row, head = (tl.program_id(1) // num_heads).to(tl.int64), tl.program_id(1) % num_heads
    m0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_T if CAUSAL else tl.program_id(0) * BLOCK_T
    i = m0 + tl.arange(0, BLOCK_T)
    q = load_tile(q_ptr + row * q_row + head * q_head, q_stride, i, num_queries, N, BLOCK_N, EVEN_T)
    grad_y = load_tile(grad_y_ptr + row * g_row + head * g_head, g_stride, i, num_queries, N, BLOCK_N, EVEN_T)
    in_result = (row * num_queries * num_heads + head) * N
    y = load_tile(y_ptr + in_result, num_heads * N, i, num_queries, N, BLOCK_N, EVEN_T)
    delta = tl.sum(grad_y.to(tl.float32) * y.to(tl.float32), 1)
    line = tl.program_id(1).to(tl.int64) * num_queries + i
    tl.store(delta_ptr + line, delta, mask=i < num_queries)
    lse = tl.load(lse_ptr + line, mask=i < num_queries, other=float("inf"))
    k_ptr += row * k_row + head // group * k_head
    v_ptr += row * v_row + head // group * v_head
    segment_i = None
    if segment_i_ptr is not None:
        segment_i = load_numbers(segment_i_ptr + row * num_queries, i, num_queries, NO_SEGMENT)
        segment_j_ptr += row * num_keys
    prefix_i = None
    if prefix_ptr is not None:
        prefix_i = load_numbers(prefix_ptr + row * num_queries, i, num_queries, 0)
    line_key = None
    if key_ptr is not None:
        line_key = line_keys(tl.load(key_ptr + tl.program_id(1)).to(tl.uint64), i)
        tl.store(line_key_ptr + line, line_key.to(tl.int64, bitcast=True), mask=i < num_queries)
    bias, before, after, sums = None, 0.0, 0.0, None
    if bias_ptr is not None:
        bias = bias_ptr + head * (2 * reach + 1) + reach
        before, after = tl.load(bias - end), tl.load(bias + end)
        tile = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + m0 // BLOCK_T
        sums = partial_ptr + tile * (SLOTS * (BLOCK_T + BLOCK_S) + 2) + FIRST_SLOT * (BLOCK_T + BLOCK_S)
        far_sums = partial_ptr + tile * (SLOTS * (BLOCK_T + BLOCK_S) + 2) + SLOTS * (BLOCK_T + BLOCK_S)

    grad_q = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    sum_before, sum_after = tl.zeros([BLOCK_T], tl.float32), tl.zeros([BLOCK_T], tl.float32)
    low, high = visited_range(span_ptr, row, m0, num_keys, False, CAUSAL, BLOCK_T, BLOCK_S)
    first, stop = low, low
    if bias is not None or CAUSAL:
        first, stop = near_tiles(m0, end, low, high, BLOCK_T, BLOCK_S)
        grad_q, sum_before, sum_after = _query_gradient_tiles(
            grad_q, sum_before, sum_after, q, grad_y, lse, delta, m0, low, first, stop, high, k_ptr, v_ptr,
            k_stride, v_stride, i, segment_i, segment_j_ptr, prefix_i, bias, before, after, sums, line_key,
            scale2, num_keys, threshold, kept_scale, True, CAUSAL, N, BLOCK_N, BLOCK_T, BLOCK_S, EVEN_S,
            PRECISION,
        )  # fmt: skip
    grad_q, sum_before, sum_after = _query_gradient_tiles(
        grad_q, sum_before, sum_after, q, grad_y, lse, delta, m0, low, first, stop, high, k_ptr, v_ptr,
        k_stride, v_stride, i, segment_i, segment_j_ptr, prefix_i, bias, before, after, sums, line_key,
        scale2, num_keys, threshold, kept_scale, False, CAUSAL, N, BLOCK_N, BLOCK_T, BLOCK_S, EVEN_S,
        PRECISION,
    )  # fmt: skip

    store_tile(grad_q_ptr + in_result, num_heads * N, i, num_queries, grad_q * scale, N, BLOCK_N)
    if bias_ptr is not None:
        tl.store(far_sums, tl.sum(sum_before, 0))
        tl.store(far_sums + 1, tl.sum(sum_after, 0))


@triton.jit
def _key_gradient_tiles(
    grad_k, grad_v, k, v, low, first, stop, high, q_ptr, grad_y_ptr, q_stride, g_stride, lse_ptr, delta_ptr,
    line_key_ptr, j, segment_i_ptr, segment_j, prefix_ptr, bias, before, after, scale2, num_queries, num_keys,
    threshold, kept_scale, NEAR: tl.constexpr, CAUSAL: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr, EVEN_T: tl.constexpr, EVEN_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the near or the far tiles of queries to the gradients of a tile of keys (keys by queries)."""
    begin, end = tile_range(low, first, stop, high, NEAR)
    for count in range(begin, end, BLOCK_T):
        i = tile_at(count, first, stop, NEAR) + tl.arange(0, BLOCK_T)
        q = load_tile(q_ptr, q_stride, i, num_queries, N, BLOCK_N, EVEN_T)
        grad_y = load_tile(grad_y_ptr, g_stride, i, num_queries, N, BLOCK_N, EVEN_T)
        lse = tl.load(lse_ptr + i, mask=i < num_queries, other=float("inf"))
        delta = tl.load(delta_ptr + i, mask=i < num_queries, other=0.0)
        segment_i = None
        if segment_j is not None:
            segment_i = load_numbers(segment_i_ptr, i, num_queries, NO_SEGMENT)
        prefix_i = None
        if prefix_ptr is not None:
            prefix_i = load_numbers(prefix_ptr, i, num_queries, 0)
        # Offsets j - i decrease over the tiles: the keys come after the queries of the first tiles.
        score = scores(
            tl.dot(k, q.T, input_precision=PRECISION), i, j, segment_i, segment_j, prefix_i, bias,
            tl.where(count < first, after, before), scale2, num_keys, True, NEAR, CAUSAL, EVEN_S,
        )  # fmt: skip
        weight = tl.exp2(score - lse[None, :])
        grad_weight = tl.dot(v, grad_y.T, input_precision=PRECISION)
        kept = weight
        if line_key_ptr is not None:
            line_key = tl.load(line_key_ptr + i, mask=i < num_queries, other=0).to(tl.uint64, bitcast=True)
            keep = is_kept(line_key[None, :], j[:, None], threshold)
            grad_weight = tl.where(keep, grad_weight * kept_scale, 0.0)
            kept = tl.where(keep, weight, 0.0)
        grad_v = tl.dot(kept.to(grad_y.dtype), grad_y, grad_v, input_precision=PRECISION)
        grad_score = weight * (grad_weight - delta[None, :])
        grad_k = tl.dot(grad_score.to(q.dtype), q, grad_k, input_precision=PRECISION)
    return grad_k, grad_v


@triton.jit(do_not_specialize=AT_RUN_TIME)
def key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, grad_y_ptr, lse_ptr, delta_ptr, line_key_ptr, bias_ptr, segment_i_ptr, segment_j_ptr,
    prefix_ptr, span_ptr, grad_k_ptr, grad_v_ptr,
    q_row, q_head, q_stride, k_row, k_head, k_stride, v_row, v_head, v_stride, g_row, g_head, g_stride,
    num_queries, num_keys, num_kv_heads, group, end, reach, scale, scale2, threshold, kept_scale,
    CAUSAL: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr, EVEN_T: tl.constexpr, EVEN_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and values of one row and key-value head: [B, S, K, N], contiguous."""
    row, kv_head = (tl.program_id(1) // num_kv_heads).to(tl.int64), tl.program_id(1) % num_kv_heads
    n0 = tl.program_id(0) * BLOCK_S
    j = n0 + tl.arange(0, BLOCK_S)
    k = load_tile(k_ptr + row * k_row + kv_head * k_head, k_stride, j, num_keys, N, BLOCK_N, EVEN_S)
    v = load_tile(v_ptr + row * v_row + kv_head * v_head, v_stride, j, num_keys, N, BLOCK_N, EVEN_S)
    segment_j = None
    if segment_i_ptr is not None:
        segment_i_ptr += row * num_queries
        segment_j = load_numbers(segment_j_ptr + row * num_keys, j, num_keys, NO_SEGMENT)
    if prefix_ptr is not None:
        prefix_ptr += row * num_queries

    grad_k = tl.zeros([BLOCK_S, BLOCK_N], tl.float32)
    grad_v = tl.zeros([BLOCK_S, BLOCK_N], tl.float32)
    low, high = visited_range(span_ptr, row, n0, num_queries, True, CAUSAL, BLOCK_S, BLOCK_T)
    first, stop = low, low
    if bias_ptr is not None or CAUSAL:
        first, stop = near_tiles(n0, end, low, high, BLOCK_S, BLOCK_T)
    for head in range(kv_head * group, kv_head * group + group):
        q = q_ptr + row * q_row + head * q_head
        grad_y = grad_y_ptr + row * g_row + head * g_head
        line = (row * num_kv_heads * group + head) * num_queries
        line_key = None
        if line_key_ptr is not None:
            line_key = line_key_ptr + line
        bias, before, after = None, 0.0, 0.0
        if bias_ptr is not None:
            bias = bias_ptr + head * (2 * reach + 1) + reach
            before, after = tl.load(bias - end), tl.load(bias + end)
        if bias_ptr is not None or CAUSAL:
            grad_k, grad_v = _key_gradient_tiles(
                grad_k, grad_v, k, v, low, first, stop, high, q, grad_y, q_stride, g_stride, lse_ptr + line,
                delta_ptr + line, line_key, j, segment_i_ptr, segment_j, prefix_ptr, bias, before, after,
                scale2, num_queries, num_keys, threshold, kept_scale, True, CAUSAL, N, BLOCK_N, BLOCK_T,
                EVEN_T, EVEN_S, PRECISION,
            )  # fmt: skip
        grad_k, grad_v = _key_gradient_tiles(
            grad_k, grad_v, k, v, low, first, stop, high, q, grad_y, q_stride, g_stride, lse_ptr + line,
            delta_ptr + line, line_key, j, segment_i_ptr, segment_j, prefix_ptr, bias, before, after, scale2,
            num_queries, num_keys, threshold, kept_scale, False, CAUSAL, N, BLOCK_N, BLOCK_T, EVEN_T, EVEN_S,
            PRECISION,
        )  # fmt: skip

    in_result = (row * num_keys * num_kv_heads + kv_head) * N
    grad_v = grad_v * kept_scale
    store_tile(grad_k_ptr + in_result, num_kv_heads * N, j, num_keys, grad_k * scale, N, BLOCK_N)
    store_tile(grad_v_ptr + in_result, num_kv_heads * N, j, num_keys, grad_v, N, BLOCK_N)


@triton.jit(do_not_specialize=("end",))
def bias_gradient_kernel(
    sum_ptr, grad_ptr, end, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, SLOTS: tl.constexpr,
    FIRST_SLOT: tl.constexpr, OFFSETS: tl.constexpr,
):  # fmt: skip
    """The gradient of one head's bias by offset, from its sums along diagonals by slot."""
    head = tl.program_id(0)
    WIDTH: tl.constexpr = BLOCK_T + BLOCK_S
    sum_ptr += head * (SLOTS * WIDTH + 2)
    offset = tl.arange(0, OFFSETS) - OFFSETS // 2
    total = tl.zeros([OFFSETS], tl.float32)
    for slot in range(SLOTS):
        for w in tl.static_range(BLOCK_T // BLOCK_S + 1):
            column = offset - (slot - FIRST_SLOT - w) * BLOCK_S
            inside = (column >= 0) & (column < BLOCK_S)
            total += tl.load(sum_ptr + slot * WIDTH + w * BLOCK_S + column, mask=inside, other=0.0)
    grad_ptr += head * (2 * end + 1)
    tl.store(grad_ptr + end + offset, total, mask=(offset > -end) & (offset < end))
    before = tl.load(sum_ptr + SLOTS * WIDTH) + tl.sum(tl.where(offset <= -end, total, 0.0), 0)
    after = tl.load(sum_ptr + SLOTS * WIDTH + 1) + tl.sum(tl.where(offset >= end, total, 0.0), 0)
    tl.store(grad_ptr, before)
    tl.store(grad_ptr + 2 * end, after)
