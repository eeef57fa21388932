"""The tiles that `grouped_triton` launches. No Triton is imported: models of traffic read them too."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kernel = Literal["hidden", "product", "hidden_gradient", "row_gradient", "weight_gradient"]


class Tiles(NamedTuple):
    """How one kernel is launched."""

    lines: int
    """Of the result: rows of a group, or outputs of a weight's gradient."""
    columns: int
    """Of the result."""
    depth: int
    """What is summed over at a time."""
    num_warps: int
    num_stages: int


def grouped_tiles(which: Kernel, num_bytes: int, capability: int) -> Tiles:
    """The tiles of a kernel, found by compiling (kernels/README.md).

    Args:
        which: The kernel; "hidden" makes two products at once, and without a gate "product" serves.
        num_bytes: Of an element: 2 or 4.
        capability: 80 for A100, 90 for H100, 100 for B200.
    """
    if num_bytes == 4:
        return _SINGLE[which]
    return _HALF[80 if capability < 90 else 90][which]


_SINGLE: dict[Kernel, Tiles] = {
    "hidden": Tiles(64, 32, 16, 4, 4),
    "product": Tiles(64, 64, 16, 4, 4),
    "hidden_gradient": Tiles(64, 64, 16, 4, 4),
    "row_gradient": Tiles(64, 64, 16, 4, 4),
    "weight_gradient": Tiles(64, 64, 16, 4, 4),
}
_HALF: dict[int, dict[Kernel, Tiles]] = {
    80: {
        "hidden": Tiles(128, 64, 32, 4, 4),
        "product": Tiles(128, 128, 32, 4, 4),
        "hidden_gradient": Tiles(128, 128, 32, 4, 4),
        "row_gradient": Tiles(128, 128, 32, 4, 4),
        "weight_gradient": Tiles(128, 128, 32, 4, 4),
    },
    90: {
        "hidden": Tiles(128, 128, 64, 8, 3),
        "product": Tiles(128, 256, 64, 8, 3),
        "hidden_gradient": Tiles(128, 128, 64, 8, 3),
        "row_gradient": Tiles(128, 256, 64, 8, 3),
        "weight_gradient": Tiles(128, 256, 64, 8, 3),
    },
}
