"""Which positions belong together.

Segments are int64: the number of a position's document, 1 everywhere where attention may cross documents,
and 0 for padding. A position reads positions of its own segment only, padding too.

Shapes: B rows, T positions that read, S positions that are read.
"""

from __future__ import annotations

from torch import Tensor


def same_segment(reading_BT: Tensor, read_BS: Tensor) -> Tensor:
    """Whether two positions are of one segment, bool [B, T, S].

    Example:
        [[1, 1, 2]] and [[1, 2]] give [[[True, False], [True, False], [False, True]]].
    """
    return reading_BT[:, :, None] == read_BS[:, None, :]
