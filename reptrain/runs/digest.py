"""The digest: 64 bits that tie the ledger to the tokens that reached the model.

All arithmetic is on 64 bits and wraps. With splitmix64's finalizer

    mix(x):  x ^= x >> 30;  x *= 0xBF58476D1CE4E5B9;  x ^= x >> 27;  x *= 0x94D049BB133111EB;  x ^= x >> 31

(shifts are logical) and the golden gamma G = 0x9E3779B97F4A7C15, let m(x) = mix(x * G). The digest of
the window [start, start + length) of the stream, with tokens t_0 ... t_(length-1), is

    a = sum over i < length of m(t_i + (i + 1) * 2**32)
    window digest = mix(a + m(m(start) + length)),  and 0 for a window of no tokens

and the digest of a step is the sum of its windows' digests. So it does not depend on the order of
rows, on ranks or on micro-batches, and a masked row adds nothing. Token and place are packed without
overlap and m is a bijection, so that one wrong token, two exchanged ones, a shifted window or another
start always, or all but always, change the sum.

On int64 tensors the same holds bit for bit: products and sums wrap alike, the constants above 2**63
are their value minus 2**64, and a logical shift by s is (x >> s) & ((1 << (64 - s)) - 1).

Source: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (splitmix64).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from reptrain.random import GAMMA, mix

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]


def _m(x: UInt64s) -> UInt64s:
    return mix(x * np.uint64(GAMMA))


def window_digest(tokens_BL: Int64s, start_B: Int64s, length_B: Int64s) -> UInt64s:
    """Digests of windows.

    Args:
        tokens_BL: int64 [B, L], ids in [0, 2**32); what lies after a window's length is ignored.
        start_B: int64 [B], first position of each window in the subset's stream.
        length_B: int64 [B], tokens of each window, 0 for a masked row.

    Returns:
        uint64 [B].
    """
    length = np.asarray(length_B, dtype=np.int64).astype(np.uint64)
    place_L = np.arange(1, tokens_BL.shape[1] + 1, dtype=np.uint64)
    hashed_BL = _m(tokens_BL.astype(np.uint64) + (place_L << np.uint64(32)))
    hashed_BL *= place_L <= length[:, None]
    sum_B = hashed_BL.sum(axis=1, dtype=np.uint64)
    start = np.asarray(start_B, dtype=np.int64).astype(np.uint64)
    digest_B = mix(sum_B + _m(_m(start) + length))
    return np.where(length > 0, digest_B, np.uint64(0))


def step_digest(window_digest_B: UInt64s) -> str:
    """The digest of a step as the ledger holds it: 16 hexadecimal digits of the wrapping sum."""
    return f"{int(window_digest_B.sum(dtype=np.uint64)):016x}"
