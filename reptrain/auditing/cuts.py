"""Windows of a stream, cut at all their boundaries.

windows [0 4) [0 4) [4 6) [3 6):    boundaries 0 3 4 6, first 0 0 2 1, last 2 2 3 3
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


class Cuts(NamedTuple):
    """Windows as ranges of the segments between neighbouring boundaries."""

    boundary: Int64s
    """int64 [E], where windows begin or end in the stream, ascending."""
    first: Int64s
    """int64 [N], number of the boundary at each window's start."""
    last: Int64s
    """int64 [N], number of the boundary at its end."""

    @classmethod
    def of(cls, start_N: Int64s, length_N: Int64s) -> Self:
        """Cut windows.

        Args:
            start_N: int64 [N], first position of each window in the stream.
            length_N: int64 [N], its tokens.
        """
        ends = np.concatenate([start_N, start_N + length_N])
        # As np.unique, which takes ten times as long to tell the inverse too.
        order = np.argsort(ends)
        ascending = ends[order]
        is_new = np.diff(ascending, prepend=-1) != 0
        number = np.empty_like(ends)
        number[order] = np.cumsum(is_new) - 1
        return cls(ascending[is_new], number[: start_N.size], number[start_N.size :])

    def changes(self, chosen: npt.NDArray[np.bool_] | None = None) -> Int64s:
        """At each boundary the windows that begin there less those that end there: int64 [E].

        Args:
            chosen: bool [N], the windows that count; None counts all.
        """
        first, last = (self.first, self.last) if chosen is None else (self.first[chosen], self.last[chosen])
        size = self.boundary.size
        return np.bincount(first, minlength=size) - np.bincount(last, minlength=size)
