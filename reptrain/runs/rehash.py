"""Digests of windows, derived from the store; a window that comes again is hashed once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from reptrain.plan import EpochPlan, Subset
from reptrain.runs.digest import window_digest

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

# Tokens hashed at once: their temporaries stay inside a core's cache.
_BATCH_TOKENS = 1 << 16
# Entries of the table of known digests (9 bytes each); plans with more windows are hashed as they come.
_LARGEST_TABLE = 1 << 25


class WindowDigests:
    """Digests by place in the stream.

    Args:
        subset: Where the tokens come from.
        plan: Where windows may lie.
    """

    def __init__(self, subset: Subset, plan: EpochPlan) -> None:
        self._subset = subset
        self._plan = plan
        fixed = plan.cut == "fixed"
        slots = plan.windows_per_epoch if fixed else plan.unique_tokens + plan.window_tokens + 1
        self._remembers = slots <= _LARGEST_TABLE
        self._known = np.zeros(slots if self._remembers else 0, dtype=bool)
        self._digest = np.zeros(self._known.size, dtype=np.uint64)

    def of(self, start_N: Int64s, length_N: Int64s) -> UInt64s:
        """Digests of these windows: uint64 [N]."""
        if not self._remembers:
            return self._compute(start_N, length_N)
        slot = self._slot(start_N, length_N)
        new = np.flatnonzero(~self._known[slot])
        slots, first = np.unique(slot[new], return_index=True)
        self._digest[slots] = self._compute(start_N[new[first]], length_N[new[first]])
        self._known[slots] = True
        return self._digest[slot]

    def _slot(self, start_N: Int64s, length_N: Int64s) -> Int64s:
        """A number for each distinct window.

        Only the window at the head of the stream has several lengths; elsewhere the start tells it all.
        """
        if self._plan.cut == "fixed":
            return start_N // self._plan.window_tokens
        return np.where(start_N > 0, start_N, self._plan.unique_tokens + length_N)

    def _compute(self, start_N: Int64s, length_N: Int64s) -> UInt64s:
        width = self._plan.window_tokens
        batch = max(1, _BATCH_TOKENS // width)
        digest = np.empty(start_N.size, dtype=np.uint64)
        for first in range(0, start_N.size, batch):
            part = slice(first, first + batch)
            tokens, length = self._subset.tokens(start_N[part], length_N[part], width)
            digest[part] = window_digest(tokens, start_N[part], length)
        return digest
