"""Digests of windows, derived from the store: each token is hashed once for all its windows.

windows [0 4) [2 6):    segments [0 2) [2 4) [4 6), hashed once each; a window is a sum of neighbours
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from reptrain.plan import Stream
from reptrain.runs.cuts import Cuts
from reptrain.runs.digest import place_base, token_hash, window_digest_of_sum

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

# Tokens hashed at once: their temporaries stay inside a core's cache.
_PIECE_TOKENS = 1 << 14
# Tokens of one call to a thread, and calls handed out ahead: bounds what waits.
_TASK_TOKENS = 1 << 20


def window_digests(stream: Stream, cuts: Cuts, *, threads: int | None = None) -> UInt64s:
    """The digests of windows: uint64 [N].

    Args:
        stream: Where the tokens come from.
        cuts: The windows, each within one source.
        threads: None takes as many as this process has cores.
    """
    start_N = cuts.boundary[cuts.first]
    length_N = cuts.boundary[cuts.last] - start_N
    # Between two boundaries there may be tokens of no window: they are not read.
    is_covered = np.cumsum(cuts.changes())[:-1] > 0
    sums = np.zeros(cuts.boundary.size, dtype=np.uint64)
    begin, end = cuts.boundary[:-1][is_covered], cuts.boundary[1:][is_covered]
    sums[1:][is_covered] = segment_sums(stream, begin, end - begin, threads=threads)
    np.cumsum(sums, out=sums)
    return window_digest_of_sum(sums[cuts.last] - sums[cuts.first], start_N, length_N)


def segment_sums(stream: Stream, start_N: Int64s, length_N: Int64s, *, threads: int | None = None) -> UInt64s:
    """Sums of the hashes of the tokens in segments of the stream: uint64 [N].

    Args:
        stream: Where the tokens come from.
        start_N: int64 [N], ascending: first position of each segment.
        length_N: int64 [N], at least 1: its tokens, all of one source.
        threads: None takes as many as this process has cores.
    """
    sums = np.empty(start_N.size, dtype=np.uint64)
    # numpy's loops run beside one another: they hold no lock of the interpreter.
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:

        def hash_part(part: slice) -> None:
            for piece in _groups(stream, start_N[part], length_N[part], _PIECE_TOKENS):
                sums[part][piece] = _hash_piece(stream, start_N[part][piece], length_N[part][piece])

        for _ in pool.map(hash_part, _groups(stream, start_N, length_N, _TASK_TOKENS)):
            pass
    return sums


def _groups(stream: Stream, start_N: Int64s, length_N: Int64s, tokens: int) -> Iterator[slice]:
    """Neighbouring segments of one source, with about so many tokens together."""
    before_N = np.cumsum(length_N) - length_N
    source_N = stream.source_of(start_N)
    changes = (np.diff(before_N // tokens, prepend=-1) != 0) | (np.diff(source_N, prepend=-1) != 0)
    bounds = [*np.flatnonzero(changes).tolist(), start_N.size]
    return (slice(first, end) for first, end in pairwise(bounds))


def _hash_piece(stream: Stream, start_N: Int64s, length_N: Int64s) -> UInt64s:
    offset_N = np.cumsum(length_N) - length_N
    # Segments that follow each other without a gap are read as one.
    joins = np.flatnonzero(np.append(True, start_N[1:] != start_N[:-1] + length_N[:-1]))
    start_R, length_R = start_N[joins], np.add.reduceat(length_N, joins)
    tokens = stream.flat(start_R, length_R)
    return np.add.reduceat(token_hash(tokens, _bases(start_R, length_R)), offset_N)


def _bases(start_R: Int64s, length_R: Int64s) -> UInt64s:
    """`place_base` of every position of ranges, one range after another."""
    offset_R = np.cumsum(length_R) - length_R
    total = int(length_R.sum())
    table = _TABLE[:total] if total <= _TABLE.size else place_base(np.arange(total))
    # The base is linear in the position: a range's first base less the table's first serves all its places.
    shift_R = place_base(start_R) - table[offset_R]
    if shift_R.size == 1:
        return np.asarray(table + shift_R[0])
    return np.asarray(table + np.repeat(shift_R, length_R))


_TABLE = place_base(np.arange(2 * _PIECE_TOKENS))
