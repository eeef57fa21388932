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


def attention_tiles(which: Pass, head_width: int, num_bytes: int, capability: int, biased: bool) -> Tiles:
    """The tiles of a kernel, found by compiling: of those without spills the quickest by the model of traffic
    (kernels/README.md).

    Args:
        which: The kernel.
        head_width: N.
        num_bytes: Of an element: 2 or 4.
        capability: 80 for A100, 90 for H100, 100 for B200.
        biased: Whether there is a bias, which takes registers.
    """
    width = min(max(block_width(head_width), 64), 256)
    if num_bytes == 4:
        return _SINGLE[which] if width == 64 else Tiles(16, 16, 4, 1)
    chip = 80 if capability < 90 else 90
    if biased and (chip, which, width) in _BIASED:
        return _BIASED[chip, which, width]
    return _HALF[chip][which][width]


# The query gradient's tiles must be whole squares, since it turns their lines.
_SINGLE: dict[Pass, Tiles] = {
    "forward": Tiles(32, 32, 4, 2),
    "query_gradient": Tiles(32, 32, 4, 2),
    "key_gradient": Tiles(16, 32, 4, 2),
}
_HALF: dict[int, dict[Pass, dict[int, Tiles]]] = {
    80: {
        "forward": {64: Tiles(128, 32, 4, 3), 128: Tiles(128, 64, 8, 2), 256: Tiles(64, 32, 8, 2)},
        "query_gradient": {64: Tiles(128, 32, 4, 2), 128: Tiles(64, 32, 4, 2), 256: Tiles(64, 32, 8, 2)},
        "key_gradient": {64: Tiles(32, 128, 8, 3), 128: Tiles(16, 64, 4, 2), 256: Tiles(16, 32, 8, 2)},
    },
    90: {
        "forward": {64: Tiles(128, 64, 8, 3), 128: Tiles(128, 64, 8, 2), 256: Tiles(128, 32, 8, 2)},
        "query_gradient": {64: Tiles(128, 64, 8, 2), 128: Tiles(128, 32, 8, 2), 256: Tiles(64, 32, 8, 2)},
        "key_gradient": {64: Tiles(32, 128, 8, 3), 128: Tiles(32, 128, 8, 2), 256: Tiles(16, 32, 8, 2)},
    },
}
_BIASED: dict[tuple[int, Pass, int], Tiles] = {
    (80, "query_gradient", 64): Tiles(64, 32, 4, 2),
    (90, "query_gradient", 64): Tiles(64, 32, 4, 2),
    (80, "key_gradient", 128): Tiles(32, 64, 8, 2),
    (90, "key_gradient", 128): Tiles(16, 128, 8, 2),
}
