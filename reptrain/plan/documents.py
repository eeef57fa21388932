"""Documents end to end, read by position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from reptrain.errors import PlanError

if TYPE_CHECKING:
    from reptrain.store import Split

Int64s = npt.NDArray[np.int64]


class Pieces(NamedTuple):
    """Runs of tokens within one document each: int64 arrays of one shape."""

    document: Int64s
    offset: Int64s
    length: Int64s


def check_windows(start_B: Int64s, length_B: Int64s, num_tokens: int, *, name: str) -> None:
    """Refuse windows that are not within a stream.

    Args:
        start_B: int64 [B], first position of each.
        length_B: int64 [B], tokens of each.
        num_tokens: Length of the stream.
        name: Name of the stream in the message.

    Raises:
        PlanError: Naming the first bad window.
    """
    bad = (start_B < 0) | (length_B < 0) | (start_B + length_B > num_tokens)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise PlanError(
            "window",
            got=f"{int(length_B[first])} tokens from {int(start_B[first])}",
            rule=f"must be within the {name}'s {num_tokens} tokens",
            remedy=f"Choose a window of this {name}.",
        )


def split_at_documents(starts: Int64s, start_B: Int64s, length_B: Int64s) -> Pieces:
    """Windows split at document boundaries, in order. `document` is the place of each document in `starts`.

    Args:
        starts: int64 [N + 1], position of each document, and the end of the last.
        start_B: int64 [B], first position of each window.
        length_B: int64 [B], tokens of each.
    """
    kept = length_B > 0
    begin, end = start_B[kept], start_B[kept] + length_B[kept]
    # The search is much faster for sorted keys: neighbors share its cache lines.
    order = np.argsort(begin)
    first, last = np.empty_like(begin), np.empty_like(begin)
    first[order] = np.searchsorted(starts, begin[order], side="right") - 1
    last[order] = np.searchsorted(starts, end[order], side="left") - 1
    count = last - first + 1
    # Pieces begin at the window's start or at a document, and end at a document's end or at the window's.
    owner = np.repeat(np.arange(begin.size), count)
    before = np.cumsum(count) - count
    position = np.arange(owner.size) + (first - before)[owner]
    document_start = starts[position]
    low, high = document_start.copy(), starts[position + 1]
    low[before] = begin
    high[before + count - 1] = end
    return Pieces(position, low - document_start, high - low)


class DocumentStream(ABC):
    """A stream of documents.

    Args:
        split: The documents.
        num_tokens: Tokens of the stream.
    """

    kind = "stream"
    """What an error message calls it."""

    def __init__(self, split: Split, num_tokens: int) -> None:
        self.split = split
        self.num_tokens = num_tokens

    def tokens(self, start_B: Int64s, length_B: Int64s, width: int) -> tuple[Int64s, Int64s]:
        """Windows of the stream as rows.

        Args:
            start_B: int64 [B], first position of each window in the stream.
            length_B: int64 [B], tokens of each; 0 gives an empty row.
            width: Columns of the result, at least the longest window.

        Returns:
            Tokens int64 [B, width], zero after a window's end, and the lengths int64 [B].

        Raises:
            PlanError: If a window exceeds the stream or `width`.
        """
        start_B, length_B = np.asarray(start_B, np.int64), np.asarray(length_B, np.int64)
        self._check(start_B, length_B)
        if length_B.size and int(length_B.max()) > width:
            raise PlanError(
                "width",
                got=f"{width} for a window of {int(length_B.max())} tokens",
                rule="must hold the longest window",
                remedy="Raise width.",
            )
        flat = self.split.read(*self._pieces(start_B, length_B))
        if flat.size == start_B.size * width:
            return flat.astype(np.int64).reshape(start_B.size, width), length_B
        tokens_BL = np.zeros((start_B.size, width), dtype=np.int64)
        first_B = np.cumsum(length_B) - length_B
        # Most rows are full: copy those at once.
        full = np.flatnonzero(length_B == width)
        if full.size:
            tokens_BL[full] = np.lib.stride_tricks.sliding_window_view(flat, width)[first_B[full]]
        for row in np.flatnonzero((length_B > 0) & (length_B < width)).tolist():
            first, length = int(first_B[row]), int(length_B[row])
            tokens_BL[row, :length] = flat[first : first + length]
        return tokens_BL, length_B

    def flat(self, start_N: Int64s, length_N: Int64s) -> npt.NDArray[np.unsignedinteger]:
        """Parts of the stream, concatenated, as the store holds them: uint16 or uint32.

        Args:
            start_N: int64 [N], first position of each part.
            length_N: int64 [N], tokens of each.

        Raises:
            PlanError: If a part exceeds the stream.
        """
        self._check(start_N, length_N)
        return self.split.read(*self._pieces(start_N, length_N))

    def in_epoch(self, position_N: Int64s, epoch: int) -> Int64s:
        """Where tokens of the subset are in this stream, in an epoch.

        Args:
            position_N: int64 [N], positions in the subset.
            epoch: The epoch, from 0.
        """
        return position_N

    def read(self, start: int, length: int) -> Int64s:
        """Tokens [start, start + length) of the stream, int64."""
        return self.tokens(np.asarray([start]), np.asarray([length]), length)[0].reshape(-1)

    def documents(self, start: int, length: int) -> list[str]:
        """Ids of the documents with tokens in [start, start + length) of the stream, in order."""
        return [identity for identity, _ in self.passages(start, length)]

    def passages(self, start: int, length: int) -> list[tuple[str, int]]:
        """Ids and numbers of tokens of the documents in [start, start + length) of the stream, in order."""
        start_B, length_B = np.asarray([start]), np.asarray([length])
        self._check(start_B, length_B)
        pieces = self._pieces(start_B, length_B)
        return [
            (self.split.document_id(int(index)), int(tokens))
            for index, tokens in zip(pieces.document, pieces.length, strict=True)
        ]

    def _check(self, start_B: Int64s, length_B: Int64s) -> None:
        check_windows(start_B, length_B, self.num_tokens, name=self.kind)

    @abstractmethod
    def _pieces(self, start_B: Int64s, length_B: Int64s) -> Pieces:
        """The windows split at document boundaries, in order."""
