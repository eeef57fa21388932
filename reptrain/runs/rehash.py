"""Digests of windows, derived from the store; a window that comes again is hashed once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from reptrain.plan import MixturePlan, Stream, Windows
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
        stream: Where the tokens come from.
        plan: Where windows may lie.
    """

    def __init__(self, stream: Stream, plan: MixturePlan) -> None:
        self._stream = stream
        self._width = plan.window_tokens
        self._is_fixed = np.asarray([source.cut == "fixed" for source in plan.plans])
        self._unique = np.asarray([source.unique_tokens for source in plan.plans], dtype=np.int64)
        slots = [
            source.windows_per_epoch if source.cut == "fixed" else source.unique_tokens + self._width + 1
            for source in plan.plans
        ]
        self._first_slot = np.cumsum([0, *slots[:-1]], dtype=np.int64)
        self._remembers = sum(slots) <= _LARGEST_TABLE
        self._known = np.zeros(sum(slots) if self._remembers else 0, dtype=bool)
        self._digest = np.zeros(self._known.size, dtype=np.uint64)

    def of(self, windows: Windows) -> UInt64s:
        """Digests of windows that the plan located: uint64 [N]."""
        if not self._remembers:
            return self._compute(windows.start, windows.length)
        slot = self._slot(windows)
        new = np.flatnonzero(~self._known[slot])
        slots, first = np.unique(slot[new], return_index=True)
        self._digest[slots] = self._compute(windows.start[new[first]], windows.length[new[first]])
        self._known[slots] = True
        return self._digest[slot]

    def _slot(self, windows: Windows) -> Int64s:
        """A number for each distinct window.

        Only the window at the head of a source has several lengths; elsewhere the start tells it all.
        """
        source = windows.source
        local = windows.start - self._stream.starts[source]
        shifted = np.where(local > 0, local, self._unique[source] + windows.length)
        return self._first_slot[source] + np.where(self._is_fixed[source], local // self._width, shifted)

    def _compute(self, start_N: Int64s, length_N: Int64s) -> UInt64s:
        batch = max(1, _BATCH_TOKENS // self._width)
        digest = np.empty(start_N.size, dtype=np.uint64)
        for first in range(0, start_N.size, batch):
            part = slice(first, first + batch)
            tokens, length = self._stream.tokens(start_N[part], length_N[part], self._width)
            digest[part] = window_digest(tokens, start_N[part], length)
        return digest
