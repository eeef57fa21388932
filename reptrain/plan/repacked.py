"""The cut `repacked`: in each epoch, the documents of a subset are packed into windows in a new order.

subset (U = 9), its last document cut:     A A A B B C C C C
its stream over two epochs, end to end:    B B A A A C C C C | A A A B B C C C C
windows of 4 tokens, W = 3:                [0 4) [4 8) [8 9) | [9 13) [13 17) [17 18)

A cut document stays last: it has no EOS, so nothing may follow it.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from threading import Lock
from typing import NamedTuple

import numpy as np

from reptrain import random
from reptrain.plan.documents import DocumentStream, Int64s, Pieces, split_at_documents
from reptrain.plan.subset import Subset

# Reading ahead needs the order of the current epoch and of the next.
_KEPT_ORDERS = 2


class _EpochOrder(NamedTuple):
    """The order of the documents in an epoch."""

    starts: Int64s
    """int64 [M + 1], position of each document in the epoch, and U."""
    places: Int64s
    """int64 [M], place in the subset of the document that comes i-th."""


class Repacked(DocumentStream):
    """The epochs of a subset, end to end: token p of epoch e is at e U + p.

    The order of an epoch is computed when one of its tokens is first read, from the lengths of the documents;
    no other epoch is needed. Two orders are kept, 16 bytes for each document.

    Args:
        subset: The tokens of each epoch.
        seed: Seed of the orders.
        epochs: Number of epochs.
    """

    def __init__(self, subset: Subset, *, seed: int, epochs: int) -> None:
        super().__init__(subset.split, epochs * subset.unique_tokens)
        self.subset = subset
        self.epochs = epochs
        self._epoch_tokens = subset.unique_tokens
        self._seed = seed
        self._lock = Lock()
        self._kept = lru_cache(maxsize=_KEPT_ORDERS)(self._compute)

    def in_epoch(self, position_N: Int64s, epoch: int) -> Int64s:
        place_N = np.searchsorted(self.subset.order.starts, position_N, side="right") - 1
        order = self._order(epoch)
        rank = np.empty_like(order.places)
        rank[order.places] = np.arange(rank.size)
        offset_N = position_N - self.subset.order.starts[place_N]
        return np.asarray(epoch * self._epoch_tokens + order.starts[rank[place_N]] + offset_N)

    def spans(self, start_N: Int64s, length_N: Int64s) -> tuple[Int64s, Int64s]:
        """Where parts of this stream are in the subset: starts and lengths, one for each document.

        Args:
            start_N: int64 [N], first position of each part.
            length_N: int64 [N], tokens of each.
        """
        pieces = self._placed(start_N, length_N)
        return self.subset.order.starts[pieces.document] + pieces.offset, pieces.length

    def _pieces(self, start_B: Int64s, length_B: Int64s) -> Pieces:
        pieces = self._placed(start_B, length_B)
        return pieces._replace(document=self.subset.order.documents[pieces.document])

    def _placed(self, start_B: Int64s, length_B: Int64s) -> Pieces:
        """`_pieces` with the document's place in the subset."""
        start, length = self._within_epochs(start_B, length_B)
        epoch = start // self._epoch_tokens
        bounds = np.flatnonzero(np.diff(epoch, prepend=-1, append=-1)).tolist()
        parts = [Pieces(*np.zeros((3, 0), dtype=np.int64))]
        for first, end in pairwise(bounds):
            order = self._order(int(epoch[first]))
            local = start[first:end] - epoch[first] * self._epoch_tokens
            pieces = split_at_documents(order.starts, local, length[first:end])
            parts.append(pieces._replace(document=order.places[pieces.document]))
        return Pieces(*map(np.concatenate, zip(*parts, strict=True)))

    def _within_epochs(self, start_B: Int64s, length_B: Int64s) -> tuple[Int64s, Int64s]:
        """Parts that are not empty, split at the ends of epochs."""
        kept = length_B > 0
        start, end = start_B[kept], start_B[kept] + length_B[kept]
        first, last = start // self._epoch_tokens, (end - 1) // self._epoch_tokens
        count = last - first + 1
        before = np.cumsum(count) - count
        epoch = np.arange(int(count.sum())) + np.repeat(first - before, count)
        low = np.maximum(np.repeat(start, count), epoch * self._epoch_tokens)
        high = np.minimum(np.repeat(end, count), (epoch + 1) * self._epoch_tokens)
        return low, high - low

    def _order(self, epoch: int) -> _EpochOrder:
        # So that threads that need one order compute it once.
        with self._lock:
            return self._kept(epoch)

    def _compute(self, epoch: int) -> _EpochOrder:
        starts = self.subset.order.starts
        count = int(np.searchsorted(starts, self._epoch_tokens))
        is_cut = int(starts[count]) > self._epoch_tokens
        places = np.full(count, count - 1)
        random.shuffled(count - is_cut, random.key(self._seed, "repack", epoch), out=places)
        lengths = np.diff(starts[: count + 1])
        lengths[-1] -= starts[count] - self._epoch_tokens
        positions = np.zeros(count + 1, dtype=np.int64)
        np.take(lengths, places, out=positions[1:], mode="clip")
        np.cumsum(positions, out=positions)
        return _EpochOrder(positions, places)
