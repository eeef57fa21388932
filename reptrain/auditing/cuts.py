"""Windows of a stream as ranges of segments between boundaries.

windows [0 4) [0 4) [4 6) [3 6):    boundaries 0 3 4 6, first 0 0 2 1, last 2 2 3 3
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


class Cuts(NamedTuple):
    """Windows as ranges of the segments between adjacent boundaries."""

    boundary: Int64s
    """int64 [E], positions in the stream where windows begin or end, ascending."""
    first: Int64s
    """int64 [N], index of the boundary at each window's start."""
    last: Int64s
    """int64 [N], index of the boundary at its end."""

    @classmethod
    def of(cls, start_N: Int64s, length_N: Int64s) -> Self:
        """The boundaries of some windows.

        Args:
            start_N: int64 [N], first position of each window in the stream.
            length_N: int64 [N], its tokens.
        """
        ends = np.concatenate([start_N, start_N + length_N])
        # Like np.unique with return_inverse, but ten times as fast.
        order = np.argsort(ends)
        ascending = ends[order]
        is_new = np.diff(ascending, prepend=-1) != 0
        number = np.empty_like(ends)
        number[order] = np.cumsum(is_new) - 1
        return cls(ascending[is_new], number[: start_N.size], number[start_N.size :])

    def changes(self, chosen: npt.NDArray[np.bool_] | None = None) -> Int64s:
        """For each boundary, the windows that begin there minus those that end there: int64 [E].

        Args:
            chosen: bool [N], the windows to count; None counts all.
        """
        first, last = (self.first, self.last) if chosen is None else (self.first[chosen], self.last[chosen])
        size = self.boundary.size
        return np.bincount(first, minlength=size) - np.bincount(last, minlength=size)
