"""Exposures: how often each token was consumed, counted over the whole stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

# Windows that wait before they are merged: bounds the memory and makes merging rare.
_WAITING = 1 << 20


class Stretches(NamedTuple):
    """Runs of tokens with one count: [start, end) of the stream was consumed `times` times."""

    start: Int64s
    end: Int64s
    times: Int64s

    def between(self, first: int, end: int) -> Stretches:
        """Those within [first, end) of the stream."""
        within = (self.start >= first) & (self.end <= end)
        return Stretches(self.start[within], self.end[within], self.times[within])

    def histogram(self) -> dict[int, int]:
        """Number of tokens by number of exposures."""
        order = np.argsort(self.times, kind="stable")
        counts, first = np.unique(self.times[order], return_index=True)
        tokens = np.add.reduceat((self.end - self.start)[order], first)
        return {int(count): int(number) for count, number in zip(counts, tokens, strict=True)}


class Exposures:
    """The differences of every token's count from its neighbour's, kept where they are not zero.

    Windows [0 4) [0 4) [4 6) of 8 tokens:  +2 at 0, -1 at 4, -1 at 6  ->  2 2 2 2 1 1 0 0

    So the memory follows the number of distinct window boundaries, not of tokens.

    Args:
        bounds: 0, where each further source begins, and the tokens of the stream: no stretch goes across.
    """

    def __init__(self, bounds: Sequence[int]) -> None:
        self._position = np.asarray(bounds, dtype=np.int64)
        self._change = np.zeros(len(bounds), dtype=np.int64)
        self._waiting: list[tuple[Int64s, Int64s]] = []
        self._num_waiting = 0

    def add(self, start_N: Int64s, length_N: Int64s) -> None:
        """Count one exposure of every token of these windows.

        Args:
            start_N: int64 [N], first position of each window in the stream.
            length_N: int64 [N], its tokens.
        """
        self._waiting.append((start_N, start_N + length_N))
        self._num_waiting += start_N.size
        if self._num_waiting >= _WAITING:
            self._merge()

    def stretches(self) -> Stretches:
        """The counts of all tokens, from the first to the last of the stream."""
        self._merge()
        times = np.cumsum(self._change)[:-1]
        return Stretches(self._position[:-1], self._position[1:], times)

    def _merge(self) -> None:
        if not self._waiting:
            return
        starts, ends = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._num_waiting = [], 0
        begun, times_begun = np.unique(starts, return_counts=True)
        ended, times_ended = np.unique(ends, return_counts=True)
        position = np.concatenate([self._position, begun, ended])
        change = np.concatenate([self._change, times_begun, -times_ended])
        order = np.argsort(position, kind="stable")
        self._position, first = np.unique(position[order], return_index=True)
        self._change = np.add.reduceat(change[order], first)
