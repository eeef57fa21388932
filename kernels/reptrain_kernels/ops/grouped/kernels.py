"""The device code of `ops.grouped.triton`.

A *line* is a row of a tile, counted from the tile's first row; a *column* is a unit of the result. No tile
has rows of two groups. The sizes of the groups are known on the device only, so the grid has the largest
possible number of tiles, and programs without rows return. An argument that is None switches its feature off
at compile time.

Lines after the end of a group read its last row, so that loads need no mask, and are not stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from reptrain_kernels.activation_triton import activation_and_slope
from reptrain_kernels.counter_triton import is_kept, line_keys

# Tiles of lines per block of programs: they share the weights of their columns in the L2 cache.
_TOGETHER = tl.constexpr(8)


@triton.jit
def _order(program, num_line_tiles, num_column_tiles):
    """Tile of lines and of columns of a program: _TOGETHER tiles of lines by all columns, then the next."""
    block = _TOGETHER * num_column_tiles
    first = program // block * _TOGETHER
    lines = tl.minimum(num_line_tiles - first, _TOGETHER)
    within = program % block
    return first + within % lines, within // lines


@triton.jit
def _find_rows(end_ptr, tile, num_groups, BLOCK_E: tl.constexpr, BLOCK: tl.constexpr):
    """The group of a tile of rows, the tile's first row, and the end of the group's rows.

    Beyond the last tile the end is 0.
    """
    group = tl.arange(0, BLOCK_E)
    inside = group < num_groups
    end = tl.load(end_ptr + group, mask=inside, other=0)
    start = tl.load(end_ptr + group - 1, mask=inside & (group > 0), other=0)
    tiles = tl.cdiv(end - start, BLOCK)
    tiles_after = tl.cumsum(tiles, 0)
    found = tl.sum((tiles_after <= tile).to(tl.int32), 0)
    is_found = group == found
    first = tl.sum(tl.where(is_found, start + (tile - tiles_after + tiles) * BLOCK, 0), 0)
    return found, first, tl.sum(tl.where(is_found, end, 0), 0)


@triton.jit
def _load_lines(
    ptr, line, stride, unit, start, num_units, EVEN: tl.constexpr
):  # fmt: skip
    """A tile of lines by units from ``start``, 0 beyond the last unit."""
    at = ptr + start + line[:, None] * stride + unit[None, :]
    if EVEN:
        return tl.load(at)
    else:
        return tl.load(at, mask=start + unit[None, :] < num_units, other=0.0)


@triton.jit
def _load_weights(
    ptr, unit, start, num_units, column, num_columns, TRANSPOSED: tl.constexpr, EVEN: tl.constexpr,
    EVEN_COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of units by columns, 0 outside the matrix. TRANSPOSED: stored as [columns, units]."""
    if TRANSPOSED:
        at = ptr + start + column[None, :] * num_units + unit[:, None]
    else:
        at = ptr + start * num_columns + unit[:, None] * num_columns + column[None, :]
    if EVEN and EVEN_COLUMNS:
        return tl.load(at)
    elif EVEN:
        return tl.load(at, mask=column[None, :] < num_columns, other=0.0)
    else:
        inside = (start + unit[:, None] < num_units) & (column[None, :] < num_columns)
        return tl.load(at, mask=inside, other=0.0)


@triton.jit
def _store(ptr, x, first, line, end, column, num_columns):
    """Store a tile: the lines up to the end of the group, and the columns that exist."""
    at = ptr + first.to(tl.int64) * num_columns + (line[:, None] * num_columns + column[None, :])
    inside = (first + line[:, None] < end) & (column[None, :] < num_columns)
    tl.store(at, x.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _multiply(
    acc, x_ptr, weight_ptr, line, column, group, first, num_units, num_columns, TRANSPOSED: tl.constexpr,
    BLOCK_K: tl.constexpr, EVEN: tl.constexpr, EVEN_COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a tile of the product of lines and their group's matrix to ``acc``."""
    unit = tl.arange(0, BLOCK_K)
    x_ptr += first.to(tl.int64) * num_units
    weight_ptr += group.to(tl.int64) * num_units * num_columns
    for start in range(0, num_units, BLOCK_K):
        x = _load_lines(x_ptr, line, num_units, unit, start, num_units, EVEN)
        weight = _load_weights(
            weight_ptr, unit, start, num_units, column, num_columns, TRANSPOSED, EVEN, EVEN_COLUMNS
        )
        acc = tl.dot(x, weight, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["num_line_tiles"])
def product_kernel(
    x_ptr, weight_ptr, y_ptr, end_ptr, num_line_tiles, num_groups, num_units, num_columns,
    BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr, EVEN_COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = x W^T. x [rows, units], y [rows, columns], W [groups, columns, units]."""
    tile, column_tile = _order(tl.program_id(0), num_line_tiles, tl.cdiv(num_columns, BLOCK_N))
    group, first, end = _find_rows(end_ptr, tile, num_groups, BLOCK_E, BLOCK_M)
    if first >= end:
        return
    line, column = tl.arange(0, BLOCK_M), column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    y = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    y = _multiply(
        y, x_ptr, weight_ptr, tl.minimum(line, end - 1 - first), column, group, first, num_units, num_columns,
        True, BLOCK_K, EVEN, EVEN_COLUMNS, PRECISION,
    )  # fmt: skip
    _store(y_ptr, y, first, line, end, column, num_columns)


@triton.jit(do_not_specialize=["num_line_tiles"])
def row_gradient_kernel(
    dy_ptr, weight_ptr, other_dy_ptr, other_weight_ptr, dx_ptr, end_ptr, num_line_tiles, num_groups,
    num_units, num_columns, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, EVEN: tl.constexpr, EVEN_COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx = dy W + other_dy other_W.

    dy [rows, units], dx [rows, columns], W [groups, units, columns].
    """
    tile, column_tile = _order(tl.program_id(0), num_line_tiles, tl.cdiv(num_columns, BLOCK_N))
    group, first, end = _find_rows(end_ptr, tile, num_groups, BLOCK_E, BLOCK_M)
    if first >= end:
        return
    line, column = tl.arange(0, BLOCK_M), column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    read = tl.minimum(line, end - 1 - first)
    dx = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    dx = _multiply(
        dx, dy_ptr, weight_ptr, read, column, group, first, num_units, num_columns, False, BLOCK_K, EVEN,
        EVEN_COLUMNS, PRECISION,
    )  # fmt: skip
    if other_dy_ptr is not None:
        dx = _multiply(
            dx, other_dy_ptr, other_weight_ptr, read, column, group, first, num_units, num_columns, False,
            BLOCK_K, EVEN, EVEN_COLUMNS, PRECISION,
        )  # fmt: skip
    _store(dx_ptr, dx, first, line, end, column, num_columns)


@triton.jit
def _drop(x, key_ptr, first, line, column, threshold, kept_scale):
    """`counter.dropout` of a tile; each row has its own key, and position 0."""
    if key_ptr is None:
        return x
    else:
        line_key = line_keys(tl.load(key_ptr + first + line).to(tl.uint64), tl.zeros_like(line))
        return tl.where(is_kept(line_key[:, None], column[None, :], threshold), x * kept_scale, 0.0)


@triton.jit
def _halves(x, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The left and the right half of a tile, without data movement between threads."""
    return tl.split(tl.permute(tl.reshape(x, [BLOCK_M, 2, BLOCK_N // 2]), [0, 2, 1]))


@triton.jit
def _store_hidden(
    gate, up, gate_ptr, up_ptr, h_ptr, key_ptr, first, end, line, start, num_columns, threshold, kept_scale,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute h from a tile of gate and up, and store all three. ``start`` is the first column.

    In slices of 32 columns: each changes its layout through shared memory, and a whole tile would not fit
    into registers.
    """
    if BLOCK_N > 32:
        left, right = _halves(gate, BLOCK_M, BLOCK_N)
        up_left, up_right = _halves(up, BLOCK_M, BLOCK_N)
        _store_hidden(
            left, up_left, gate_ptr, up_ptr, h_ptr, key_ptr, first, end, line, start, num_columns, threshold,
            kept_scale, ACTIVATION, BLOCK_M, BLOCK_N // 2,
        )  # fmt: skip
        _store_hidden(
            right, up_right, gate_ptr, up_ptr, h_ptr, key_ptr, first, end, line, start + BLOCK_N // 2,
            num_columns, threshold, kept_scale, ACTIVATION, BLOCK_M, BLOCK_N // 2,
        )  # fmt: skip
    else:
        column = start + tl.arange(0, BLOCK_N)
        _store(up_ptr, up, first, line, end, column, num_columns)
        if gate_ptr is not None:
            _store(gate_ptr, gate, first, line, end, column, num_columns)
            h = activation_and_slope(gate, ACTIVATION)[0] * up
        else:
            h = activation_and_slope(up, ACTIVATION)[0]
        h = _drop(h, key_ptr, first, tl.minimum(line, end - 1 - first), column, threshold, kept_scale)
        _store(h_ptr, h, first, line, end, column, num_columns)


@triton.jit(do_not_specialize=["num_line_tiles", "threshold", "kept_scale"])
def hidden_kernel(
    x_ptr, gate_weight_ptr, up_weight_ptr, key_ptr, gate_ptr, up_ptr, h_ptr, end_ptr, num_line_tiles,
    num_groups, num_units, num_columns, threshold, kept_scale, ACTIVATION: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr, EVEN_COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """gate = x Wg^T, up = x Wu^T, h = drop(act(gate) up); without a gate h = drop(act(up)).

    x [rows, units], weights [groups, columns, units], the others [rows, columns].
    """
    tile, column_tile = _order(tl.program_id(0), num_line_tiles, tl.cdiv(num_columns, BLOCK_N))
    group, first, end = _find_rows(end_ptr, tile, num_groups, BLOCK_E, BLOCK_M)
    if first >= end:
        return
    line, column = tl.arange(0, BLOCK_M), column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    read, unit = tl.minimum(line, end - 1 - first), tl.arange(0, BLOCK_K)
    x_ptr += first.to(tl.int64) * num_units
    matrix = group.to(tl.int64) * num_units * num_columns
    up = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    gate = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in range(0, num_units, BLOCK_K):
        x = _load_lines(x_ptr, read, num_units, unit, start, num_units, EVEN)
        weight = _load_weights(
            up_weight_ptr + matrix, unit, start, num_units, column, num_columns, True, EVEN, EVEN_COLUMNS
        )
        up = tl.dot(x, weight, up, input_precision=PRECISION)
        if gate_ptr is not None:
            weight = _load_weights(
                gate_weight_ptr + matrix, unit, start, num_units, column, num_columns, True, EVEN,
                EVEN_COLUMNS,
            )  # fmt: skip
            gate = tl.dot(x, weight, gate, input_precision=PRECISION)
    _store_hidden(
        gate, up, gate_ptr, up_ptr, h_ptr, key_ptr, first, end, line, column_tile * BLOCK_N, num_columns,
        threshold, kept_scale, ACTIVATION, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@triton.jit
def _store_hidden_gradients(
    dh, gate_ptr, up_ptr, key_ptr, dgate_ptr, dup_ptr, first, end, line, start, num_columns, threshold,
    kept_scale, ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute and store the gradients of gate and up from a tile of dh before dropout.

    ``start`` is the first column. In slices, as in `_store_hidden`.
    """
    if BLOCK_N > 32:
        left, right = _halves(dh, BLOCK_M, BLOCK_N)
        _store_hidden_gradients(
            left, gate_ptr, up_ptr, key_ptr, dgate_ptr, dup_ptr, first, end, line, start, num_columns,
            threshold, kept_scale, ACTIVATION, BLOCK_M, BLOCK_N // 2,
        )  # fmt: skip
        _store_hidden_gradients(
            right, gate_ptr, up_ptr, key_ptr, dgate_ptr, dup_ptr, first, end, line, start + BLOCK_N // 2,
            num_columns, threshold, kept_scale, ACTIVATION, BLOCK_M, BLOCK_N // 2,
        )  # fmt: skip
    else:
        column = start + tl.arange(0, BLOCK_N)
        read = tl.minimum(line, end - 1 - first)
        dh = _drop(dh, key_ptr, first, read, column, threshold, kept_scale)
        at = read[:, None] * num_columns + column[None, :]
        inside = column[None, :] < num_columns
        here = first.to(tl.int64) * num_columns
        up = tl.load(up_ptr + here + at, mask=inside, other=0.0).to(tl.float32)
        if gate_ptr is None:
            _store(
                dup_ptr, dh * activation_and_slope(up, ACTIVATION)[1], first, line, end, column, num_columns
            )
        else:
            gate = tl.load(gate_ptr + here + at, mask=inside, other=0.0).to(tl.float32)
            value, slope = activation_and_slope(gate, ACTIVATION)
            _store(dup_ptr, dh * value, first, line, end, column, num_columns)
            _store(dgate_ptr, dh * up * slope, first, line, end, column, num_columns)


@triton.jit(do_not_specialize=["num_line_tiles", "threshold", "kept_scale"])
def hidden_gradient_kernel(
    dy_ptr, down_weight_ptr, gate_ptr, up_ptr, key_ptr, dgate_ptr, dup_ptr, end_ptr, num_line_tiles,
    num_groups, num_units, num_columns, threshold, kept_scale, ACTIVATION: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr, EVEN_COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dh = drop(dy Wd), and from it the gradients of gate and up; without a gate, of up.

    dy [rows, units], Wd [groups, units, columns], the others [rows, columns].
    """
    tile, column_tile = _order(tl.program_id(0), num_line_tiles, tl.cdiv(num_columns, BLOCK_N))
    group, first, end = _find_rows(end_ptr, tile, num_groups, BLOCK_E, BLOCK_M)
    if first >= end:
        return
    line, column = tl.arange(0, BLOCK_M), column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    dh = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    dh = _multiply(
        dh, dy_ptr, down_weight_ptr, tl.minimum(line, end - 1 - first), column, group, first, num_units,
        num_columns, False, BLOCK_K, EVEN, EVEN_COLUMNS, PRECISION,
    )  # fmt: skip
    _store_hidden_gradients(
        dh, gate_ptr, up_ptr, key_ptr, dgate_ptr, dup_ptr, first, end, line, column_tile * BLOCK_N,
        num_columns, threshold, kept_scale, ACTIVATION, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@triton.jit
def weight_gradient_kernel(
    dy_ptr, x_ptr, dweight_ptr, end_ptr, num_lines, num_columns, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_LINES: tl.constexpr, EVEN_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of dW = dy^T x of one group; a loop over the rows of the group.

    dy [rows, lines], x [rows, columns], dW [groups, lines, columns].
    """
    group = tl.program_id(1)
    line_tiles, column_tiles = tl.cdiv(num_lines, BLOCK_M), tl.cdiv(num_columns, BLOCK_N)
    line_tile, column_tile = _order(tl.program_id(0), line_tiles, column_tiles)
    end = tl.load(end_ptr + group)
    first = tl.load(end_ptr + group - 1, mask=group > 0, other=0)
    line, column = line_tile * BLOCK_M + tl.arange(0, BLOCK_M), column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    dy_ptr += first.to(tl.int64) * num_lines
    x_ptr += first.to(tl.int64) * num_columns
    for start in range(first, end, BLOCK_K):
        # Loaded transposed: a transpose after the load would pass through registers.
        inside = start + row[None, :] < end
        at = dy_ptr + (row[None, :] * num_lines + line[:, None])
        if EVEN_LINES:
            dy = tl.load(at, mask=inside, other=0.0)
        else:
            dy = tl.load(at, mask=inside & (line[:, None] < num_lines), other=0.0)
        # After the end of the group, its last row again, without a mask: dy is zero there.
        read = tl.minimum(row, end - 1 - start)
        at = x_ptr + (read[:, None] * num_columns + column[None, :])
        x = tl.load(at) if EVEN_COLUMNS else tl.load(at, mask=column[None, :] < num_columns, other=0.0)
        acc = tl.dot(dy, x, acc, input_precision=PRECISION)
        dy_ptr += BLOCK_K * num_lines
        x_ptr += BLOCK_K * num_columns
    at = group.to(tl.int64) * num_lines * num_columns + line[:, None].to(tl.int64) * num_columns
    inside = (line[:, None] < num_lines) & (column[None, :] < num_columns)
    tl.store(dweight_ptr + at + column[None, :], acc.to(dweight_ptr.dtype.element_ty), mask=inside)
