"""What a wrong digest tells: the sum of a step narrowed down to a window or a token where that is possible.

The sum over a step does not say which window is wrong. But it is invertible window by window and token by
token, so that each single fault can be tried: a window that is missing, that came too often, or in whose
place another came, and one token for another. A guess that is wrong fits by chance once in about 2**64 /
(guesses); more than one fault at once is not found, and the documents of the step are named.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from reptrain.plan import Stream, Windows
from reptrain.plan.digest import place_base, sum_of_window_digest, token_hash, token_of_hash

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

_CANDIDATES = 8


@dataclass(frozen=True)
class Finding:
    """What is wrong, and where."""

    message: str
    index: int
    """Global index of the window, or the first of the step where it is not known."""
    document: str | None = None
    """Document of the fault, where it is known."""
    candidates: tuple[str, ...] = ()
    """Else the first documents of the step."""


@dataclass(frozen=True)
class Narrower:
    """Narrows wrong digests down, among windows that were derived together.

    Args:
        stream: The tokens.
        vocab_size: Ids of the stream's tokens lie below it.
        index: int64 [N], global indices of the windows.
        windows: Where they lie.
        digests: uint64 [N], of the windows, from the store.
        step: int64 [R], the steps that the windows belong to.
        offset: int64 [R], first window of each step.
        sums: uint64 [R], the steps' digests, from the store.
    """

    stream: Stream
    vocab_size: int
    index: Int64s
    windows: Windows
    digests: UInt64s
    step: Int64s
    offset: Int64s
    sums: UInt64s

    def find(self, place: int, told: np.uint64) -> Finding:
        """What may have made the digest `told` out of the windows of the step at `place`."""
        first = int(self.offset[place])
        last = int(self.offset[place + 1]) if place + 1 < self.offset.size else self.index.size
        step = np.arange(first, last)
        # An array of one, as numpy warns where a scalar wraps.
        difference = told - self.sums[place : place + 1]
        found = self._step(place, told) or self._window(step, difference) or self._token(step, difference)
        found = found or self._unknown(step)
        if found.document is None and step.size == 1:
            return replace(found, document=self._documents(step[0])[0])
        return found

    @cached_property
    def _sorted(self) -> Int64s:
        return np.argsort(self.digests, kind="stable")

    def _find(self, digest_N: UInt64s) -> Int64s:
        """A window that has each digest, or -1."""
        place = np.searchsorted(self.digests, digest_N, sorter=self._sorted)
        window = self._sorted[np.minimum(place, self.digests.size - 1)]
        return np.where(self.digests[window] == digest_N, window, -1)

    def _step(self, place: int, told: np.uint64) -> Finding | None:
        index = int(self.index[self.offset[place]])
        if not told:
            return Finding("it saw no window at all", index)
        same = np.flatnonzero(self.sums == told)
        return Finding(f"it saw the windows of step {self.step[same[0]]}", index) if same.size else None

    def _window(self, step_W: Int64s, difference: UInt64s) -> Finding | None:
        """One window missing, too many or in the place of another."""
        digest_W = self.digests[step_W]
        missing = np.flatnonzero(digest_W + difference == 0)
        if missing.size:
            return self._of_window(step_W[missing[0]], "its window is missing")
        (added,) = self._find(difference)
        if added >= 0:
            first = int(self.index[step_W[0]])
            return Finding(f"{self._name(added)} came in addition", first, self._documents(added)[0])
        other_W = self._find(digest_W + difference)
        replaced = np.flatnonzero(other_W >= 0)
        if replaced.size:
            window, other = step_W[replaced[0]], other_W[replaced[0]]
            return self._of_window(window, f"{self._name(other)} came in its place")
        return None

    def _of_window(self, window: np.int64, message: str) -> Finding:
        return Finding(message, int(self.index[window]), self._documents(window)[0])

    def _name(self, window: np.int64) -> str:
        # Not by its global index: with fixed cuts the same window comes in every epoch.
        return (
            f"the window of {self.windows.length[window]} tokens from position {self.windows.start[window]}"
        )

    def _documents(self, window: np.int64) -> list[str]:
        start, length = int(self.windows.start[window]), int(self.windows.length[window])
        return self.stream.documents(start, length)

    def _token(self, step_W: Int64s, difference: UInt64s) -> Finding | None:
        """One token that came for another: what it would have to be is computed at every place."""
        for window in step_W:
            part = slice(window, window + 1)
            start_B, length_B = self.windows.start[part], self.windows.length[part]
            tokens = self.stream.flat(start_B, length_B)
            base = place_base(start_B + np.arange(tokens.size))
            hashed = token_hash(tokens, base)
            seen = sum_of_window_digest(self.digests[part] + difference, start_B, length_B)
            token = token_of_hash(hashed + (seen - hashed.sum()), base)
            fits = np.flatnonzero(token < self.vocab_size)
            if fits.size:
                position = int(start_B[0]) + int(fits[0])
                return Finding(
                    f"it saw token {token[fits[0]]} at position {position} of the stream,"
                    f" where the store has {tokens[fits[0]]}",
                    int(self.index[window]),
                    self.stream.documents(position, 1)[0],
                )
        return None

    def _unknown(self, step_W: Int64s) -> Finding:
        names: dict[str, None] = {}
        for window in step_W:
            names |= dict.fromkeys(self._documents(window))
            if len(names) > _CANDIDATES:
                break
        candidates = tuple(names)[:_CANDIDATES]
        first = int(self.index[step_W[0]])
        if step_W.size == 1:
            return Finding(
                "several tokens differ",
                first,
                candidates[0],
                candidates if len(candidates) > 1 else (),
            )
        return Finding(
            f"several tokens or windows differ, and the sum of {step_W.size} windows does not tell which",
            first,
            candidates=candidates,
        )
