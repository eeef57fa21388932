"""Exposures of the tokens of the subsets, from those of a run's stream.

A stream that is not repacked is its subset. With the cut `repacked` it has all epochs of the subset, and the
exposures of a token are the sum over the epochs.
"""

from __future__ import annotations

import numpy as np

from reptrain.auditing.exposures import Int64s, Stretches
from reptrain.plan import Stream
from reptrain.plan.repacked import Repacked


def subset_exposures(stretches: Stretches, stream: Stream) -> Stretches:
    """The exposures of the subsets' tokens.

    Args:
        stretches: The exposures of the stream's tokens.
        stream: The stream.

    Returns:
        Stretches of the concatenated subsets. None crosses the end of a subset.
    """
    if not any(isinstance(part, Repacked) for part in stream.parts):
        return stretches
    parts = []
    for part, begin, target in zip(stream.parts, stream.starts, stream.subset_starts, strict=True):
        own = stretches.between(int(begin), int(begin) + part.num_tokens)
        own = Stretches(own.start - begin, own.end - begin, own.times)
        counted = _summed(own, part) if isinstance(part, Repacked) else own
        parts.append(Stretches(counted.start + target, counted.end + target, counted.times))
    return Stretches(*map(np.concatenate, zip(*parts, strict=True)))


def _summed(stretches: Stretches, part: Repacked) -> Stretches:
    """The exposures of a subset's tokens, summed over its epochs."""
    tokens = part.subset.unique_tokens
    position, change = np.asarray([0, tokens]), np.zeros(2, dtype=np.int64)
    for epoch in range(part.epochs):
        own = stretches.between(epoch * tokens, (epoch + 1) * tokens)
        counts = np.unique(own.times)
        for times in counts[counts != 0]:
            where = own.times == times
            start, length = own.start[where], (own.end - own.start)[where]
            if counts.size == 1:
                # The order does not matter where all tokens have the same exposures.
                start, length = np.asarray([0]), np.asarray([tokens])
            else:
                start, length = part.spans(start, length)
            ends = [np.full_like(start, times), np.full_like(start, -times)]
            position, change = _joined([position, start, start + length], [change, *ends])
    return Stretches(position[:-1], position[1:], np.cumsum(change)[:-1])


def _joined(positions: list[Int64s], changes: list[Int64s]) -> tuple[Int64s, Int64s]:
    """Changes of the count by position, each position once. Those without a change are left out inside."""
    position, place = np.unique(np.concatenate(positions), return_inverse=True)
    change = np.zeros(position.size, dtype=np.int64)
    np.add.at(change, place, np.concatenate(changes))
    kept = change != 0
    kept[[0, -1]] = True
    return position[kept], change[kept]
