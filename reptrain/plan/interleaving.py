"""The order in which several sources take turns: a pure function of the global index, without table.

Sources of 4 and 2 windows, each window at (2 j + 1) / (2 n) of its source (Webster's order):

window          A0   B0   A1   A2   B1   A3
at             1/8  1/4  3/8  5/8  3/4  7/8
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reptrain.errors import PlanError

Int64s = npt.NDArray[np.int64]

LARGEST_WINDOWS = 2**62
BLOCK_WINDOWS = 4096
"""Windows per block of the order. Changing it changes the order of every mixture."""


class Turns(NamedTuple):
    """The source at each index, and the number of the window within that source (int64)."""

    source: Int64s
    local: Int64s


@dataclass(frozen=True)
class Interleaving:
    """The order of the windows of several sources.

    The counts at the start of every block of `BLOCK_WINDOWS` are those of Webster's order over the whole
    run; within a block, the windows are again in Webster's order. With S sources, N windows in all, n of
    them from a source, that source has

        before any global index g:         n g / N  to within  max(1, S - 1)
        in any stretch of m windows:       n m / N  to within  2 max(1, S - 1)

    since in Webster's order it has n x windows to within 1/2 before position x, and a block adds as much
    again.

    Args:
        counts: Windows of each source, each at least 1.

    Source: Balinski & Young, "Fair Representation", 1982 (Webster's method).
    """

    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 1 or sum(self.counts) >= LARGEST_WINDOWS:
            raise PlanError(
                "windows of the sources",
                got=", ".join(map(str, self.counts)) or "none",
                rule="must be at least 1 for each and below 2**62 for all",
                remedy="Change total_tokens of the sources.",
            )

    @cached_property
    def total(self) -> int:
        """N, the windows of all sources."""
        return sum(self.counts)

    def locate(self, global_index: Int64s) -> Turns:
        """The turns at these global indices.

        Args:
            global_index: int64 in [0, total), any shape.
        """
        index = np.asarray(global_index, dtype=np.int64)
        if len(self.counts) == 1:
            return Turns(np.zeros_like(index), index)
        flat = index.reshape(-1)
        source, local = np.empty_like(flat), np.empty_like(flat)
        blocks, owner = np.unique(flat // BLOCK_WINDOWS, return_inverse=True)
        order = np.argsort(owner, kind="stable")
        ends = np.cumsum(np.bincount(owner, minlength=blocks.size))
        for block, first, end in zip(blocks, ends - np.diff(ends, prepend=0), ends, strict=True):
            members = order[first:end]
            before, turns = self._block(int(block))
            place = flat[members] - block * BLOCK_WINDOWS
            source[members] = turns.source[place]
            local[members] = turns.local[place] + np.asarray(before)[source[members]]
        return Turns(source.reshape(index.shape), local.reshape(index.shape))

    def counts_before(self, global_index: int) -> tuple[int, ...]:
        """Windows of each source before a global index, from 0 to `total`."""
        if len(self.counts) == 1:
            return (global_index,)
        block, place = divmod(global_index, BLOCK_WINDOWS)
        if not place:
            return _webster(self.counts, global_index)
        before, turns = self._block(block)
        within = np.bincount(turns.source[:place], minlength=len(self.counts))
        return tuple(start + int(more) for start, more in zip(before, within, strict=True))

    def _block(self, block: int) -> tuple[tuple[int, ...], Turns]:
        """The counts before a block, and the turns in it, with window numbers relative to its start."""
        first = block * BLOCK_WINDOWS
        before = _webster(self.counts, first)
        after = _webster(self.counts, min(first + BLOCK_WINDOWS, self.total))
        return before, _turns(tuple(end - start for start, end in zip(before, after, strict=True)))


@lru_cache(maxsize=1024)
def _webster(counts: tuple[int, ...], place: int) -> tuple[int, ...]:
    """Windows of each source among the first `place` of Webster's order. Ties go by source."""
    total = sum(counts)
    # Windows up to the fraction place / total; off by at most half a window for each source.
    taken = [(2 * place * count + total) // (2 * total) for count in counts]
    while sum(taken) > place:
        last = max(range(len(counts)), key=lambda i: (Fraction(2 * taken[i] - 1, counts[i]), i))
        taken[last] -= 1
    while sum(taken) < place:
        following = min(range(len(counts)), key=lambda i: (Fraction(2 * taken[i] + 1, counts[i]), i))
        taken[following] += 1
    return tuple(taken)


@lru_cache(maxsize=64)
def _turns(counts: tuple[int, ...]) -> Turns:
    """Webster's order of the windows of a block."""
    source = np.repeat(np.arange(len(counts)), counts)
    local = np.concatenate([np.arange(count) for count in counts])
    # Distinct fractions with denominators up to 4096 differ by at least 2**-24, so 30 bits separate them.
    at = ((2 * local + 1) << 30) // np.repeat(counts, counts)
    order = np.argsort(at, kind="stable")
    return Turns(source[order].astype(np.int64), local[order].astype(np.int64))
