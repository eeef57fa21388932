"""Exposures: how often each token of the stream was consumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reptrain.auditing.cuts import Cuts

Int64s = npt.NDArray[np.int64]


class Stretches(NamedTuple):
    """Ranges of equal count: the tokens [start, end) of the stream were consumed `times` times."""

    start: Int64s
    end: Int64s
    times: Int64s

    def between(self, first: int, end: int) -> Stretches:
        """The stretches within [first, end) of the stream, clipped to it."""
        within = slice(
            int(np.searchsorted(self.end, first, side="right")), int(np.searchsorted(self.start, end))
        )
        start, stop = np.maximum(self.start[within], first), np.minimum(self.end[within], end)
        return Stretches(start, stop, self.times[within])

    def histogram(self) -> dict[int, int]:
        """Number of tokens by number of exposures."""
        counts, place = np.unique(self.times, return_inverse=True)
        tokens = np.zeros(counts.size, dtype=np.int64)
        np.add.at(tokens, place, self.end - self.start)
        return {int(count): int(number) for count, number in zip(counts, tokens, strict=True)}

    def each(self) -> Int64s:
        """The count of every token, int64. Uses memory for each token, so call it on part of a stream."""
        return np.repeat(self.times, self.end - self.start)


class Exposures:
    """Counts exposures as differences between adjacent tokens, stored where they are not zero.

    Windows [0 4) [0 4) [4 6) of 8 tokens:  +2 at 0, -1 at 4, -1 at 6  ->  2 2 2 2 1 1 0 0

    Memory grows with the number of distinct window boundaries, 12 bytes each, not with the tokens.

    Args:
        bounds: 0, the start of each further source, and the stream's length. No stretch crosses a bound.
    """

    def __init__(self, bounds: Sequence[int]) -> None:
        self._position = np.asarray(bounds, dtype=np.int64)
        self._change = np.zeros(len(bounds), dtype=np.int32)

    def add(self, cuts: Cuts, chosen: npt.NDArray[np.bool_] | None = None) -> None:
        """Count one exposure for every token of these windows.

        Args:
            cuts: The windows.
            chosen: bool [N], the windows to count; None counts all.
        """
        change = cuts.changes(chosen).astype(np.int32)
        place = np.searchsorted(self._position, cuts.boundary)
        is_known = self._position[np.minimum(place, self._position.size - 1)] == cuts.boundary
        self._change[place[is_known]] += change[is_known]
        is_new = ~is_known & (change != 0)
        if is_new.any():
            self._position = np.insert(self._position, place[is_new], cuts.boundary[is_new])
            self._change = np.insert(self._change, place[is_new], change[is_new])

    def stretches(self) -> Stretches:
        """The counts of all tokens of the stream."""
        times = np.cumsum(self._change, dtype=np.int64)[:-1]
        return Stretches(self._position[:-1], self._position[1:], times)
