"""The digest: 64 bits that tie the ledger to the tokens that reached the model.

All arithmetic is on 64 bits and wraps. With splitmix64's finalizer

    mix(x):  x ^= x >> 30;  x *= 0xBF58476D1CE4E5B9;  x ^= x >> 27;  x *= 0x94D049BB133111EB;  x ^= x >> 31

(shifts are logical), the golden gamma G = 0x9E3779B97F4A7C15 and m(x) = mix(x * G), a token t at
position p of the stream has the hash

    h(t, p) = mix(t + (p + 1) * G)          output p of the splitmix64 generator that starts at t

The window [start, start + length) with the tokens t_0 ... t_(length-1) has the digest

    a = sum over i < length of h(t_i, start + i)
    window digest = mix(a + m(m(start) + length)),  and 0 for a window of no tokens

The digest of a step is the sum of its windows' digests. So it does not depend on the order of rows, on ranks
or on micro-batches, and a masked row adds nothing. mix and m are bijections: one wrong token always changes
the digest; two swapped tokens, a shifted window or another start almost always do. The argument of mix is
distinct for all tokens and positions, as long as positions are less than 2**30 apart, or less than 2**41 with
ids below 2**22, because multiples of the golden gamma are far apart.

A token's hash depends on its position in the stream, not in the window. So `a` is a difference of two prefix
sums over the stream, and the audit hashes each token once for all its windows (`reptrain.auditing.rehash`).

int64 tensors give the same bits: products and sums wrap alike, constants above 2**63
become their value minus 2**64, and a logical shift by s is (x >> s) & ((1 << (64 - s)) - 1).

Source: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (splitmix64).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from reptrain.random import GAMMA, mix, unmix

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
Tokens = npt.NDArray[np.integer]

_GAMMA = np.uint64(GAMMA)


def place_base(position: npt.ArrayLike) -> UInt64s:
    """(p + 1) * G for positions p. A token is added to it before mixing."""
    return (np.asarray(position, dtype=np.int64).astype(np.uint64) + np.uint64(1)) * _GAMMA


def token_hash(tokens: Tokens, base: UInt64s) -> UInt64s:
    """h(t, p) of tokens, with the `place_base` of their positions: uint64 of the broadcast shape."""
    return mix(np.asarray(np.add(base, tokens, dtype=np.uint64, casting="unsafe")))


def token_of_hash(hashed: UInt64s, base: UInt64s) -> UInt64s:
    """The inverse of `token_hash`: the number below 2**64 that has this hash at a position."""
    return unmix(hashed.copy()) - base


def window_digest_of_sum(sum_B: UInt64s, start_B: Int64s, length_B: Int64s) -> UInt64s:
    """Digests of windows from the sums of their tokens' hashes: uint64 [B]."""
    digest_B = mix(sum_B + _window_base(start_B, length_B))
    return np.where(np.asarray(length_B) > 0, digest_B, np.uint64(0))


def sum_of_window_digest(digest_B: UInt64s, start_B: Int64s, length_B: Int64s) -> UInt64s:
    """The inverse of `window_digest_of_sum`, for windows of at least one token."""
    return unmix(digest_B.copy()) - _window_base(start_B, length_B)


def window_digest(tokens_BL: Tokens, start_B: Int64s, length_B: Int64s) -> UInt64s:
    """Digests of windows.

    Args:
        tokens_BL: Integers [B, L] in [0, 2**32); columns after a window's length are ignored.
        start_B: int64 [B], first position of each window in the subset's stream.
        length_B: int64 [B], tokens of each window, 0 for a masked row.

    Returns:
        uint64 [B].
    """
    start_B, length_B = np.asarray(start_B, dtype=np.int64), np.asarray(length_B, dtype=np.int64)
    offset_L = np.arange(tokens_BL.shape[1])
    hashed_BL = token_hash(tokens_BL, place_base(start_B[:, None] + offset_L))
    hashed_BL *= offset_L < length_B[:, None]
    return window_digest_of_sum(hashed_BL.sum(axis=1, dtype=np.uint64), start_B, length_B)


def step_digest(window_digest_B: UInt64s) -> str:
    """The digest of a step as in the ledger: the wrapping sum as 16 hexadecimal digits."""
    return f"{int(window_digest_B.sum(dtype=np.uint64)):016x}"


def _window_base(start_B: Int64s, length_B: Int64s) -> UInt64s:
    start, length = (np.asarray(values, dtype=np.int64).astype(np.uint64) for values in (start_B, length_B))
    return _m(_m(start) + length)


def _m(x: UInt64s) -> UInt64s:
    return mix(x * _GAMMA)
