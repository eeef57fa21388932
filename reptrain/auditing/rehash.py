"""Digests of windows, computed from the store. Each token is hashed once for all its windows.

windows [0 4) [2 6):    segments [0 2) [2 4) [4 6), hashed once each; a window is a sum of segments
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from reptrain.auditing.cuts import Cuts
from reptrain.plan import Stream
from reptrain.plan.digest import place_base, token_hash, window_digest_of_sum

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

# Tokens hashed at a time: temporaries fit in a core's cache.
_PIECE_TOKENS = 1 << 14
# Tokens that a thread reads at a time.
_TASK_TOKENS = 1 << 20


def window_digests(stream: Stream, cuts: Cuts, *, threads: int | None = None) -> UInt64s:
    """The digests of windows: uint64 [N].

    Args:
        stream: The tokens.
        cuts: The windows, each within one source.
        threads: Number of threads; None uses one for each core of this process.
    """
    start_N = cuts.boundary[cuts.first]
    length_N = cuts.boundary[cuts.last] - start_N
    # Tokens that lie in no window are not read.
    is_covered = np.cumsum(cuts.changes())[:-1] > 0
    sums = np.zeros(cuts.boundary.size, dtype=np.uint64)
    begin, end = cuts.boundary[:-1][is_covered], cuts.boundary[1:][is_covered]
    sums[1:][is_covered] = segment_sums(stream, begin, end - begin, threads=threads)
    np.cumsum(sums, out=sums)
    return window_digest_of_sum(sums[cuts.last] - sums[cuts.first], start_N, length_N)


def segment_sums(stream: Stream, start_N: Int64s, length_N: Int64s, *, threads: int | None = None) -> UInt64s:
    """Sums of the hashes of the tokens in segments of the stream: uint64 [N].

    Args:
        stream: The tokens.
        start_N: int64 [N], ascending: first position of each segment.
        length_N: int64 [N], at least 1: its tokens, all of one source.
        threads: Number of threads; None uses one for each core of this process.
    """
    sums = np.empty(start_N.size, dtype=np.uint64)

    def hash_task(part: slice) -> None:
        sums[part] = _task_sums(stream, start_N[part], length_N[part])

    tasks = _groups(length_N, _TASK_TOKENS, stream.source_of(start_N))
    # numpy releases the interpreter lock in its loops.
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(hash_task, tasks):
            pass
    return sums


def _groups(length_N: Int64s, tokens: int, kind_N: Int64s | None = None) -> Iterator[slice]:
    """Groups of adjacent segments of one kind, each of about this many tokens."""
    group_N = (np.cumsum(length_N) - length_N) // tokens
    changes = np.diff(group_N, prepend=-1) != 0
    if kind_N is not None:
        changes |= np.diff(kind_N, prepend=-1) != 0
    return (slice(first, end) for first, end in pairwise([*np.flatnonzero(changes).tolist(), length_N.size]))


def _task_sums(stream: Stream, start_N: Int64s, length_N: Int64s) -> UInt64s:
    """Sums of segments of one source. Reads many tokens at a time, hashes few: both are fastest that way."""
    tokens = stream.flat(*_joined(start_N, length_N))
    offset_N = np.cumsum(length_N) - length_N
    sums = np.empty(start_N.size, dtype=np.uint64)
    for piece in _groups(length_N, _PIECE_TOKENS):
        base = _bases(*_joined(start_N[piece], length_N[piece]))
        offset = offset_N[piece] - offset_N[piece.start]
        low = int(offset_N[piece.start])
        sums[piece] = np.add.reduceat(token_hash(tokens[low : low + base.size], base), offset)
    return sums


def _joined(start_N: Int64s, length_N: Int64s) -> tuple[Int64s, Int64s]:
    """The segments, with those that touch merged into one."""
    first_R = np.flatnonzero(np.append(True, start_N[1:] != start_N[:-1] + length_N[:-1]))
    return start_N[first_R], np.add.reduceat(length_N, first_R)


def _bases(start_R: Int64s, length_R: Int64s) -> UInt64s:
    """`place_base` of every position of the segments, concatenated."""
    total = int(length_R.sum())
    table = _TABLE[:total] if total <= _TABLE.size else place_base(np.arange(total))
    # place_base is linear, so one shift per segment turns table entries into its values.
    shift_R = place_base(start_R) - table[np.cumsum(length_R) - length_R]
    return np.asarray(table + (shift_R if shift_R.size == 1 else np.repeat(shift_R, length_R)))


_TABLE = place_base(np.arange(2 * _PIECE_TOKENS))
