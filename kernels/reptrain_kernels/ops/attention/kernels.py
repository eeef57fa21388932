"""The device code of `ops.attention.triton`.

Names: i positions of queries, j positions of keys, m0 and n0 the first of a tile of BLOCK_T queries and of
BLOCK_S keys, N width of a head. Scores are for exp2: ``scale2`` and the bias are multiplied by log2(e) before
the launch. An argument that is None switches its feature off at compile time. The bias is
padded to offsets from -reach to reach, which cover every near tile, so that no offset is clamped.

With ``end`` = E, a tile is far if none of its offsets j - i is in (-E, E). Then its bias is one number, and
a causal mask shows or hides it as a whole. The other tiles are near: those from ``first`` to ``stop``. E is 1
without a bias. Near and far tiles have separate loops: with a branch in one loop, the compiler does not see
that one product feeds the next, and changes the layout of tiles through shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from reptrain_kernels.counter_triton import is_kept, line_keys

# Not specialized: rates and lengths change during a run, and must not cause a new compilation.
AT_RUN_TIME = ("num_queries", "num_keys", "num_heads", "num_kv_heads", "group", "end", "reach", "threshold")
NO_SEGMENT = tl.constexpr(-(2**31))
# The interpreter does not support inline assembly.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def load_tile(
    ptr, stride, position, num_positions, N: tl.constexpr, BLOCK_N: tl.constexpr, EVEN: tl.constexpr
):
    """A tile of positions by units of a head, 0 outside."""
    unit = tl.arange(0, BLOCK_N)
    at = ptr + position[:, None] * stride + unit[None, :]
    if N == BLOCK_N and EVEN:
        return tl.load(at)
    elif N == BLOCK_N:
        return tl.load(at, mask=position[:, None] < num_positions, other=0.0)
    else:
        return tl.load(at, mask=(position[:, None] < num_positions) & (unit[None, :] < N), other=0.0)


@triton.jit
def store_tile(ptr, stride, position, num_positions, x, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """Store a tile of positions by units of a head."""
    unit = tl.arange(0, BLOCK_N)
    inside = (position[:, None] < num_positions) & (unit[None, :] < N)
    tl.store(ptr + position[:, None] * stride + unit[None, :], x.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def load_numbers(ptr, position, num_positions, other: tl.constexpr):
    """One int32 per position, ``other`` after the last."""
    return tl.load(ptr + position, mask=position < num_positions, other=other).to(tl.int32)


@triton.jit
def near_tiles(m0, end, low, high, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr):
    """The range of the tiles of BLOCK positions that are near the tile at m0, within low to high."""
    before = m0 - end - BLOCK + 1
    first = tl.where(before < 0, 0, (before // BLOCK + 1) * BLOCK)
    stop = tl.cdiv(m0 + BLOCK_M - 1 + end, BLOCK) * BLOCK
    return tl.minimum(tl.maximum(first, low), high), tl.minimum(tl.maximum(stop, low), high)


@triton.jit
def _look_up(ptr, index):
    """fp32 numbers by index, in the layout of the index.

    `tl.load` would choose another layout and convert it through shared memory.
    """
    if _INTERPRETED:
        return tl.load(ptr + index)
    else:
        # The address is computed here, since 64 bits per element would not fit into registers.
        return tl.inline_asm_elementwise(
            "{ .reg .u64 at; mad.wide.s32 at, $2, 4, $1; ld.global.nc.f32 $0, [at]; }",
            "=f,l,r",
            [ptr, index],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def outer(of_queries, of_keys, KEYS_FIRST: tl.constexpr):
    """Two vectors shaped so that they broadcast to a tile, queries by keys or keys by queries."""
    if KEYS_FIRST:
        return of_queries[None, :], of_keys[:, None]
    else:
        return of_queries[:, None], of_keys[None, :]


@triton.jit
def scores(
    product, i, j, segment_i, segment_j, prefix_i, bias_ptr, far, scale2, num_keys,
    KEYS_FIRST: tl.constexpr, NEAR: tl.constexpr, CAUSAL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Scores of a tile, -inf where the mask hides a key. ``product`` is the tile of q k^T."""
    query, key = outer(i, j, KEYS_FIRST)
    score = product * scale2
    if bias_ptr is not None:
        score += _look_up(bias_ptr, key - query) if NEAR else far
    if CAUSAL:
        if prefix_i is not None:
            prefix, _ = outer(prefix_i, j, KEYS_FIRST)
            score = tl.where((key <= query) | (key < prefix), score, float("-inf"))
        elif NEAR:
            score = tl.where(key <= query, score, float("-inf"))
    if segment_i is not None:
        of_query, of_key = outer(segment_i, segment_j, KEYS_FIRST)
        score = tl.where(of_query == of_key, score, float("-inf"))
    elif not EVEN:
        score = tl.where(key < num_keys, score, float("-inf"))
    return score


@triton.jit
def tile_range(low, first, stop, high, NEAR: tl.constexpr):
    """The range of a loop over the near or the far tiles; the far ones are counted without the near ones."""
    if NEAR:
        return first, stop
    else:
        return low, high - (stop - first)


@triton.jit
def tile_at(count, first, stop, NEAR: tl.constexpr):
    """First position of the tile for a counter in `tile_range`."""
    return count if NEAR else tl.where(count < first, count, count + (stop - first))


@triton.jit(do_not_specialize=("num_positions", "num_others"))
def span_kernel(
    segment_ptr, other_segment_ptr, prefix_ptr, span_ptr, num_positions, num_others,
    OF_KEYS: tl.constexpr, CAUSAL: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The range of keys visible to each block of queries; OF_KEYS: of queries, to each block of keys.

    Only the smallest and the largest segment of a block are compared, so a range may be too wide, but not too
    narrow.
    """
    row, start = tl.program_id(1), tl.program_id(0) * BLOCK
    position = start + tl.arange(0, BLOCK)
    if segment_ptr is not None:
        at = segment_ptr + row * num_positions + position
        least = tl.min(tl.load(at, mask=position < num_positions, other=2**31 - 1).to(tl.int32), 0)
        most = tl.max(tl.load(at, mask=position < num_positions, other=NO_SEGMENT).to(tl.int32), 0)
    reach = start + BLOCK
    if prefix_ptr is not None and not OF_KEYS:
        at = prefix_ptr + row * num_positions + position
        reach = tl.maximum(reach, tl.max(tl.load(at, mask=position < num_positions, other=0).to(tl.int32), 0))
    first, stop = num_others, 0
    for chunk in range(0, num_others, CHUNK):
        other = chunk + tl.arange(0, CHUNK)
        inside = other < num_others
        visible = inside
        if segment_ptr is not None:
            segment = tl.load(other_segment_ptr + row * num_others + other, mask=inside, other=0).to(tl.int32)
            visible = visible & (segment >= least) & (segment <= most)
        if CAUSAL and OF_KEYS:
            after = other >= start
            if prefix_ptr is not None:
                prefix = tl.load(prefix_ptr + row * num_others + other, mask=inside, other=0).to(tl.int32)
                after = after | (prefix > start)
            visible = visible & after
        elif CAUSAL:
            visible = visible & (other < reach)
        first = tl.minimum(first, tl.min(tl.where(visible, other, num_others), 0))
        stop = tl.maximum(stop, tl.max(tl.where(visible, other + 1, 0), 0))
    at = span_ptr + (row * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(at, first)
    tl.store(at + 1, stop)


@triton.jit
def visited_range(
    span_ptr, row, start, num_others, OF_KEYS: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The range of positions whose tiles a block visits, by its span or else by the causal mask."""
    first, stop = 0, num_others
    if span_ptr is not None:
        at = span_ptr + (row * tl.num_programs(0) + start // BLOCK_M) * 2
        first, stop = tl.load(at) // BLOCK * BLOCK, tl.load(at + 1)
    elif CAUSAL and OF_KEYS:
        first = start // BLOCK * BLOCK
    elif CAUSAL:
        stop = tl.minimum(start + BLOCK_M, num_others)
    return first, stop


@triton.jit
def _forward_tiles(
    y, row_max, row_sum, q, low, first, stop, high, k_ptr, v_ptr, k_stride, v_stride, i, segment_i,
    segment_j_ptr, prefix_i, bias, before, after, line_key, scale2, num_keys, threshold, NEAR: tl.constexpr,
    CAUSAL: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
    EVEN_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the near or the far tiles of keys to the running results of a tile of queries (online softmax)."""
    begin, end = tile_range(low, first, stop, high, NEAR)
    for count in range(begin, end, BLOCK_S):
        j = tile_at(count, first, stop, NEAR) + tl.arange(0, BLOCK_S)
        k = load_tile(k_ptr, k_stride, j, num_keys, N, BLOCK_N, EVEN_S)
        v = load_tile(v_ptr, v_stride, j, num_keys, N, BLOCK_N, EVEN_S)
        segment_j = None
        if segment_i is not None:
            segment_j = load_numbers(segment_j_ptr, j, num_keys, NO_SEGMENT)
        score = scores(
            tl.dot(q, k.T, input_precision=PRECISION), i, j, segment_i, segment_j, prefix_i, bias,
            tl.where(count < first, before, after), scale2, num_keys, False, NEAR, CAUSAL, EVEN_S,
        )  # fmt: skip
        new_max = tl.maximum(row_max, tl.max(score, 1))
        # The maximum is -inf as long as no key is visible, and -inf - -inf would be NaN.
        origin = tl.where(new_max == float("-inf"), 0.0, new_max)
        weight = tl.exp2(score - origin[:, None])
        rescale = tl.exp2(row_max - origin)
        row_sum = row_sum * rescale + tl.sum(weight, 1)
        if line_key is not None:
            weight = tl.where(is_kept(line_key[:, None], j[None, :], threshold), weight, 0.0)
        y = tl.dot(weight.to(v.dtype), v, y * rescale[:, None], input_precision=PRECISION)
        row_max = new_max
    return y, row_max, row_sum


@triton.jit(do_not_specialize=AT_RUN_TIME)
def forward_kernel(
    q_ptr, k_ptr, v_ptr, y_ptr, lse_ptr, bias_ptr, segment_i_ptr, segment_j_ptr, prefix_ptr, key_ptr,
    span_ptr, q_row, q_head, q_stride, k_row, k_head, k_stride, v_row, v_head, v_stride,
    num_queries, num_keys, num_heads, group, end, reach, scale2, threshold, kept_scale,
    CAUSAL: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr, EVEN_T: tl.constexpr, EVEN_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one row and head. y is [B, T, H, N] and lse [B, H, T], contiguous."""
    row, head = (tl.program_id(1) // num_heads).to(tl.int64), tl.program_id(1) % num_heads
    # Under a causal mask the last tiles take longest, so they start first.
    m0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_T if CAUSAL else tl.program_id(0) * BLOCK_T
    i = m0 + tl.arange(0, BLOCK_T)
    q = load_tile(q_ptr + row * q_row + head * q_head, q_stride, i, num_queries, N, BLOCK_N, EVEN_T)
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
    bias, before, after = None, 0.0, 0.0
    if bias_ptr is not None:
        bias = bias_ptr + head * (2 * reach + 1) + reach
        before, after = tl.load(bias - end), tl.load(bias + end)

    y = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    row_max = tl.full([BLOCK_T], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_T], tl.float32)
    low, high = visited_range(span_ptr, row, m0, num_keys, False, CAUSAL, BLOCK_T, BLOCK_S)
    first, stop = low, low
    if bias is not None or CAUSAL:
        first, stop = near_tiles(m0, end, low, high, BLOCK_T, BLOCK_S)
        y, row_max, row_sum = _forward_tiles(
            y, row_max, row_sum, q, low, first, stop, high, k_ptr, v_ptr, k_stride, v_stride, i, segment_i,
            segment_j_ptr, prefix_i, bias, before, after, line_key, scale2, num_keys, threshold, True,
            CAUSAL, N, BLOCK_N, BLOCK_S, EVEN_S, PRECISION,
        )  # fmt: skip
    y, row_max, row_sum = _forward_tiles(
        y, row_max, row_sum, q, low, first, stop, high, k_ptr, v_ptr, k_stride, v_stride, i, segment_i,
        segment_j_ptr, prefix_i, bias, before, after, line_key, scale2, num_keys, threshold, False, CAUSAL,
        N, BLOCK_N, BLOCK_S, EVEN_S, PRECISION,
    )  # fmt: skip

    sees_keys = row_sum > 0
    y = y * (kept_scale / tl.where(sees_keys, row_sum, 1.0))[:, None]
    lse = tl.where(sees_keys, row_max + tl.log2(tl.where(sees_keys, row_sum, 1.0)), float("inf"))
    y_ptr += (row * num_queries * num_heads + head) * N
    store_tile(y_ptr, num_heads * N, i, num_queries, y, N, BLOCK_N)
    tl.store(lse_ptr + tl.program_id(1).to(tl.int64) * num_queries + i, lse, mask=i < num_queries)
