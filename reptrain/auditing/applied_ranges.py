"""Ranges of global indices that were applied."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

# The ledger of a run has far fewer; further ranges are not kept.
_MOST_RANGES = 1 << 12


class AppliedRanges:
    """Ranges of global indices, adjacent ones joined."""

    def __init__(self) -> None:
        self._ranges: list[list[int]] = []

    @property
    def end(self) -> int:
        """One more than the largest index; 0 if there is none."""
        return max((end for _, end in self._ranges), default=0)

    def count(self, index: int) -> int:
        """How many times an index was applied."""
        return sum(first <= index < end for first, end in self._ranges)

    def add(self, first_R: Int64s, end_R: Int64s) -> None:
        """Add ranges [first, end), one for each record."""
        if not first_R.size:
            return
        breaks = np.flatnonzero(np.append(True, first_R[1:] != end_R[:-1]))
        stops = np.append(breaks[1:], first_R.size) - 1
        for first, end in zip(first_R[breaks].tolist(), end_R[stops].tolist(), strict=True):
            if self._ranges and self._ranges[-1][1] == first:
                self._ranges[-1][1] = end
            elif len(self._ranges) < _MOST_RANGES:
                self._ranges.append([first, end])
