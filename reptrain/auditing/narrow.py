"""From a wrong digest to the wrong window or token, where there is a single fault.

A step's digest is a sum over its windows, so it does not show which window is wrong. But the hash is
invertible for each window and token, so every single fault can be tested: a window that is missing, added or
replaced by another, and a token replaced by another. A wrong guess fits by chance once in about 2**64 /
(guesses). Several faults at once are not located; the documents of the step are listed.
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
    """A fault and its place."""

    message: str
    index: int
    """Global index of the window, or the step's first one if it is unknown."""
    document: str | None = None
    """Document of the fault, if known."""
    candidates: tuple[str, ...] = ()
    """Otherwise the first documents of the step."""


@dataclass(frozen=True)
class Narrower:
    """Locates the faults behind wrong digests, within one chunk of windows.

    Args:
        stream: The tokens.
        vocab_size: All token ids are below it.
        index: int64 [N], global indices of the windows.
        windows: Their place in the stream.
        digests: uint64 [N], digests of the windows, from the store.
        step: int64 [R], the steps of the windows.
        offset: int64 [R], first window of each step.
        sums: uint64 [R], digests of the steps, from the store.
    """

    stream: Stream
    vocab_size: int
    index: Int64s
    windows: Windows
    digests: UInt64s
    step: Int64s
    offset: Int64s
    sums: UInt64s

    def find(self, place: int, recorded: np.uint64) -> Finding:
        """The fault that may have changed the digest of the step at `place` to the recorded one."""
        first = int(self.offset[place])
        last = int(self.offset[place + 1]) if place + 1 < self.offset.size else self.index.size
        step = np.arange(first, last)
        # An array, as numpy warns when a scalar wraps around.
        difference = recorded - self.sums[place : place + 1]
        finding = self._step(place, recorded) or self._window(step, difference)
        finding = finding or self._token(step, difference) or self._unknown(step)
        if finding.document is None and step.size == 1:
            return replace(finding, document=self._documents(step[0])[0])
        return finding

    @cached_property
    def _sorted(self) -> Int64s:
        return np.argsort(self.digests, kind="stable")

    def _find(self, digest_N: UInt64s) -> Int64s:
        """For each digest a window that has it, or -1."""
        place = np.searchsorted(self.digests, digest_N, sorter=self._sorted)
        window = self._sorted[np.minimum(place, self.digests.size - 1)]
        return np.where(self.digests[window] == digest_N, window, -1)

    def _step(self, place: int, recorded: np.uint64) -> Finding | None:
        index = int(self.index[self.offset[place]])
        if not recorded:
            return Finding("it saw no window at all", index)
        same = np.flatnonzero(self.sums == recorded)
        return Finding(f"it saw the windows of step {self.step[same[0]]}", index) if same.size else None

    def _window(self, step_W: Int64s, difference: UInt64s) -> Finding | None:
        """One window missing, added or replaced."""
        digest_W = self.digests[step_W]
        missing = np.flatnonzero(digest_W + difference == 0)
        if missing.size:
            return self._finding(step_W[missing[0]], "its window is missing")
        (added,) = self._find(difference)
        if added >= 0:
            first = int(self.index[step_W[0]])
            return Finding(f"{self._name(added)} came in addition", first, self._documents(added)[0])
        other_W = self._find(digest_W + difference)
        replaced = np.flatnonzero(other_W >= 0)
        if replaced.size:
            window, other = step_W[replaced[0]], other_W[replaced[0]]
            return self._finding(window, f"{self._name(other)} came in its place")
        return None

    def _finding(self, window: np.int64, message: str) -> Finding:
        return Finding(message, int(self.index[window]), self._documents(window)[0])

    def _name(self, window: np.int64) -> str:
        # Not by global index: with fixed cuts the same window occurs in every epoch.
        return (
            f"the window of {self.windows.length[window]} tokens from position {self.windows.start[window]}"
        )

    def _documents(self, window: np.int64) -> list[str]:
        start, length = int(self.windows.start[window]), int(self.windows.length[window])
        return self.stream.documents(start, length)

    def _token(self, step_W: Int64s, difference: UInt64s) -> Finding | None:
        """One token replaced: for every position, compute the token that would explain the digest."""
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
            f"several tokens or windows differ, and the sum of {step_W.size} windows does not show which",
            first,
            candidates=candidates,
        )
