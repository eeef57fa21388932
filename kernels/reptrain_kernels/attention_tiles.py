"""The tiles that `attention_triton` launches. No Triton is imported: tables and models of traffic read them too."""

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
    width = block_width(head_width)
    if num_bytes == 4:
        return Tiles(32, 32, 4, 1 if width > 64 else 2)
    if which == "forward":
        return Tiles(128, 64, 4 if width <= 64 else 8, 3 if width <= 64 else 2)
    # The query gradient turns its tiles about their diagonals, so they are square.
    if width <= 64:
        return Tiles(64, 64, 4, 3)
    return Tiles(64, 64, 8, 2)
