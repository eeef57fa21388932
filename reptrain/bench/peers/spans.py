"""Span corruption as batched NumPy code usually computes it, for full windows of one length."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


def corrupted(
    tokens_BL: Int64s,
    draw: np.random.Generator,
    *,
    sentinel: int,
    eos: int,
    density: float = 0.15,
    mean: float = 3.0,
) -> tuple[Int64s, Int64s]:
    """Inputs and targets of windows, int64 [B, S] and [B, T].

    Args:
        tokens_BL: int64, full windows.
        draw: Source of the random spans.
        sentinel: Id of the first sentinel; the next ones count down.
        eos: Id that ends inputs and targets.
        density: Fraction of the tokens to hide.
        mean: Mean length of a hidden span.
    """
    length = tokens_BL.shape[1]
    hidden = max(1, round(length * density))
    spans = max(1, round(hidden / mean))
    rows = len(tokens_BL)
    lengths = np.stack(
        [_segments(length - hidden, spans, rows, draw), _segments(hidden, spans, rows, draw)], axis=2
    ).reshape(rows, -1)
    starts = np.zeros((rows, length), dtype=np.int64)
    np.put_along_axis(starts, np.cumsum(lengths, axis=1)[:, :-1], 1, axis=1)
    is_hidden = np.cumsum(starts, axis=1) % 2 == 1
    return (
        _with_sentinels(tokens_BL, is_hidden, sentinel, eos),
        _with_sentinels(tokens_BL, ~is_hidden, sentinel, eos),
    )


def _segments(total: int, parts: int, rows: int, draw: np.random.Generator) -> Int64s:
    """Random lengths of ``parts`` segments that add up to ``total``, int64 [rows, parts]."""
    cuts = np.tile((np.arange(total - 1) < parts - 1).astype(np.int64), (rows, 1))
    number = np.cumsum(np.pad(draw.permuted(cuts, axis=1), [(0, 0), (1, 0)]), axis=1)
    flat = (number + parts * np.arange(rows)[:, None]).ravel()
    return np.bincount(flat, minlength=rows * parts).reshape(rows, parts)


def _with_sentinels(
    tokens_BL: Int64s, is_hidden_BL: npt.NDArray[np.bool_], sentinel: int, eos: int
) -> Int64s:
    """Each hidden span replaced by the next sentinel, and an EOS at the end of the row."""
    before = np.pad(is_hidden_BL, [(0, 0), (1, 0)])[:, :-1]
    begins = is_hidden_BL & ~before
    ids = np.where(begins, sentinel + 1 - np.cumsum(begins, axis=1), tokens_BL)
    kept = ids[~is_hidden_BL | begins].reshape(len(tokens_BL), -1)
    return np.concatenate([kept, np.full((len(kept), 1), eos)], axis=1)
