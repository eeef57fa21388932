"""The tiles that `attention_triton` launches. No Triton is imported: models of traffic read them too."""

from __future__ import annotations

from typing import Literal, NamedTuple

Pass = Literal["forward", "query_gradient", "key_gradient"]


class Tiles(NamedTuple):
    """How one kernel is launched."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


def block_width(head_width: int) -> int:
    """The width that a head fills in a tile: a power of two, at least 16 for the matrix units."""
    return max(16, 1 << (head_width - 1).bit_length())


def attention_tiles(which: Pass, head_width: int, num_bytes: int, capability: int) -> Tiles:
    """The tiles of a kernel, found by compiling: the widest without spills (kernels/README.md).

    Args:
        which: The kernel.
        head_width: N.
        num_bytes: Of an element: 2 or 4.
        capability: 80 for A100, 90 for H100, 100 for B200.
    """
    if num_bytes == 4:
        return _SINGLE[block_width(head_width) > 64]
    table = _HALF_SM80 if capability < 90 else _HALF_SM90
    return table[which][min(max(block_width(head_width), 64), 256)]


_SINGLE = {False: Tiles(32, 32, 4, 2), True: Tiles(16, 16, 4, 1)}

# The query gradient's tiles must be whole squares, since it turns their lines.
_HALF_SM80: dict[Pass, dict[int, Tiles]] = {
    "forward": {64: Tiles(128, 64, 8, 3), 128: Tiles(128, 64, 8, 2), 256: Tiles(64, 32, 8, 2)},
    "query_gradient": {64: Tiles(128, 32, 8, 3), 128: Tiles(64, 32, 4, 2), 256: Tiles(64, 32, 8, 2)},
    "key_gradient": {64: Tiles(32, 128, 8, 3), 128: Tiles(32, 64, 4, 2), 256: Tiles(16, 64, 8, 2)},
}
_HALF_SM90: dict[Pass, dict[int, Tiles]] = {
    "forward": {64: Tiles(128, 64, 8, 3), 128: Tiles(128, 64, 8, 2), 256: Tiles(128, 32, 8, 2)},
    "query_gradient": {64: Tiles(128, 32, 8, 3), 128: Tiles(128, 32, 8, 2), 256: Tiles(64, 32, 8, 2)},
    "key_gradient": {64: Tiles(32, 128, 8, 3), 128: Tiles(32, 128, 8, 2), 256: Tiles(16, 64, 8, 2)},
}
