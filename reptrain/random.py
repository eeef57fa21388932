"""Random numbers as a function of a key and a counter: no state, and random access to every element.

Draws come from Philox4x32-10: ten rounds over a 128-bit counter under a 64-bit key, which pass BigCrush
however counters and keys are strided. A key is one uint64, derived by ``key(seed, purpose, *parts)``, so
that no two purposes share a stream:

    counter words (32 bits each)                       key         gives
    purpose low, purpose high, number of parts, 1      seed        key 0
    part i low, part i high, i + 1, 1                  key i       key i + 1
    counter low, counter high, 0, 0                    last key    draws

The last word separates derivation and draws; words 0 and 1 of the output are the low and the high half of
the 64-bit result. A purpose is represented by the BLAKE2b hash of its name.

Permutations are Feistel networks with splitmix64 as round function, which is much faster: round i adds output
`half` of the generator that starts at s_i, where s_i is output i of the generator that starts at the key.

Sources: Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11, section 3.3;
Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, section 4.
"""

from __future__ import annotations

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from reptrain import random_native

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

_PHILOX = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_PHILOX_ROUNDS = 10

_DRAW, _DERIVE = 0, 1

GAMMA = 0x9E3779B97F4A7C15
MULTIPLY = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_UNMULTIPLY = tuple(np.uint64(pow(factor, -1, 2**64)) for factor in MULTIPLY)

# Below a side of 64, a round mixes little: at n = 8, a chi-squared test over the images of four indices
# rejects 12 rounds, but not 16. FF1 (NIST SP 800-38G) uses ten rounds for large sets.
_SMALL, _ROUNDS_SMALL, _ROUNDS_LARGE = 4096, 24, 10
# Temporaries of one chunk fit in a core's cache.
_CHUNK = 1 << 14

# Below this size, the call into C takes longer than NumPy.
_IN_C = 16

_Words = tuple[UInt64s, UInt64s, UInt64s, UInt64s]


def philox4x32(counter: _Words, key: tuple[UInt64s, UInt64s]) -> _Words:
    """Ten rounds of Philox4x32.

    Args:
        counter: Four broadcastable arrays of 32-bit words, stored as uint64.
        key: Two such arrays.

    Returns:
        Four arrays of 32-bit words, stored as uint64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_PHILOX_ROUNDS):
        p0, p1 = _PHILOX[0] * c0, _PHILOX[1] * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _block(key: UInt64s, word: UInt64s, third: int, use: int) -> UInt64s:
    """The first 64 bits of the Philox block at a counter of four 32-bit words, two of them in ``word``."""
    if max(key.size, word.size) >= _IN_C:
        drawn = random_native.blocks(key, word, third, use)
        if drawn is not None:
            return drawn
    words = (word & _LOW, word >> _HALF, np.asarray(np.uint64(third)), np.asarray(np.uint64(use)))
    low, high, _, _ = philox4x32(words, (key & _LOW, key >> _HALF))
    return low | (high << _HALF)


def key(seed: int, purpose: str, *parts: int | Int64s) -> UInt64s:
    """The key of a purpose, and of its parts (an epoch, a window ...).

    Args:
        seed: In [0, 2**64).
        purpose: A name; equal names give equal keys on every machine.
        parts: Integers of at least 0, or int64 arrays of them, which broadcast.

    Returns:
        uint64, of the parts' broadcast shape (a 0-d array without parts).
    """
    derived = np.asarray(_purpose_key(seed, purpose, len(parts)), dtype=np.uint64)
    for number, part in enumerate(parts, start=1):
        word = np.asarray(part).astype(np.uint64)
        derived = _block(derived, word, number, _DERIVE)
    return np.asarray(derived)


@lru_cache(maxsize=256)
def _purpose_key(seed: int, purpose: str, num_parts: int) -> int:
    name = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    start, word = np.asarray(seed, dtype=np.uint64), np.asarray(name, dtype=np.uint64)
    return int(_block(start, word, num_parts, _DERIVE))


def uint64(key: UInt64s, counter_N: int | Int64s) -> UInt64s:
    """Uniform 64-bit integers. Each element depends only on its key and counter.

    Args:
        key: From `key`; broadcasts with the counters. Use a key for one kind of draw only.
        counter_N: int64, at least 0.
    """
    word = np.asarray(counter_N).astype(np.uint64)
    return np.asarray(_block(key, word, 0, _DRAW))


def uint32(key: UInt64s, counter_N: int | Int64s) -> npt.NDArray[np.uint32]:
    """Uniform 32-bit integers: the low half of `uint64`."""
    return (uint64(key, counter_N) & _LOW).astype(np.uint32)


def uniform(key: UInt64s, counter_N: int | Int64s) -> Floats:
    """Uniform float64 in [0, 1), multiples of 2**-53; see `uint64`."""
    return (uint64(key, counter_N) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(bound: int | Int64s, key: UInt64s, counter_N: int | Int64s) -> Int64s:
    """Uniform integers in [0, bound), for bounds up to 2**32 (bias under 2**-32); see `uint64`."""
    return (uint64(key, counter_N) % np.asarray(bound).astype(np.uint64)).astype(np.int64)


def mix(x: UInt64s) -> UInt64s:
    """The finalizer of splitmix64, a bijection on 64 bits.

    x ^= x >> 30;  x *= MULTIPLY[0];  x ^= x >> 27;  x *= MULTIPLY[1];  x ^= x >> 31

    Args:
        x: uint64 array, changed in place.

    Returns:
        The same array.
    """
    x ^= x >> np.uint64(30)
    x *= np.uint64(MULTIPLY[0])
    x ^= x >> np.uint64(27)
    x *= np.uint64(MULTIPLY[1])
    x ^= x >> np.uint64(31)
    return x


def unmix(x: UInt64s) -> UInt64s:
    """The inverse of `mix`. Changes a uint64 array in place."""
    x ^= x >> np.uint64(31) ^ x >> np.uint64(62)
    x *= _UNMULTIPLY[1]
    x ^= x >> np.uint64(27) ^ x >> np.uint64(54)
    x *= _UNMULTIPLY[0]
    x ^= x >> np.uint64(30) ^ x >> np.uint64(60)
    return x


def permute(index_N: Int64s, n: int, key: UInt64s) -> Int64s:
    """A keyed bijection on [0, n), without a table.

    A Feistel network on [0, a) x [0, b), with a * b slightly above n. Images outside [0, n) pass through it
    again (cycle walking). `a` is even, as two odd sides give only even permutations. 24 rounds for n below
    4096, else 10.

        index = left * b + right
        round 0, 2, ...: left  = (left  + f(round, right)) mod a
        round 1, 3, ...: right = (right + f(round, left))  mod b
        f(round, half) = mix(s_round + (half + 1) * GAMMA) >> 1,  s_round = mix(key + (round + 1) * GAMMA)

    Args:
        index_N: int64 in [0, n), any shape.
        n: Size of the set, 1 to 2**62.
        key: From `key`; a single key, or one for each index.

    Returns:
        int64 in [0, n), of the same shape.

    Source: Black & Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, sections 4 and 5.
    """
    return _walk(index_N, n, key, forward=True)


def shuffled(count: int, key: UInt64s, out: Int64s | None = None) -> Int64s:
    """A keyed permutation as a table: [0, count) in random order.

    It is the ascending order of mix(key + (i + 1) * GAMMA) without its lowest b bits, the smaller index first
    on ties; b is the number of bits of count - 1. A table is computed faster than by `permute`.

    Args:
        count: At most 2**32.
        key: From `key`; a single key.
        out: int64, at least ``count`` values; the first ones are overwritten. None: a new array.

    Returns:
        int64 [count].
    """
    table = np.empty(count, dtype=np.int64) if out is None else out[:count]
    if count >= _CHUNK and random_native.shuffled(key, table):
        return table
    words, low = table.view(np.uint64), np.uint64((1 << max(count - 1, 0).bit_length()) - 1)
    begin, end = 0, count
    for first in range(0, count, _CHUNK):
        index = np.arange(first, min(first + _CHUNK, count), dtype=np.uint64)
        drawn = mix((index + np.uint64(1)) * np.uint64(GAMMA) + key)
        # With the index in the low bits, a sort of integers gives the order.
        drawn = drawn & ~low | index
        # Small words from the left, large ones from the right: two threads sort one half each.
        is_large = drawn >> np.uint64(63) != 0
        small, large = drawn[~is_large], drawn[is_large]
        words[begin : begin + small.size] = small
        words[end - large.size : end] = large
        begin, end = begin + small.size, end - large.size
    if count < _CHUNK:
        words.sort()
    else:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(np.ndarray.sort, (words[:begin], words[begin:])))
    words &= low
    return table


def unpermute(image_N: Int64s, n: int, key: UInt64s) -> Int64s:
    """The inverse of `permute`."""
    return _walk(image_N, n, key, forward=False)


def _walk(index_N: Int64s, n: int, key: UInt64s, *, forward: bool) -> Int64s:
    index = np.asarray(index_N, dtype=np.int64)
    if not 1 <= n <= 2**62:
        raise ValueError(f"n must be in [1, 2**62], but got {n}")
    if index.size and (int(index.min()) < 0 or int(index.max()) >= n):
        raise ValueError(f"indices must be in [0, {n}), but got {int(index.min())} to {int(index.max())}")
    image = index.reshape(-1).astype(np.uint64)
    one_key = np.ndim(key) == 0
    keys = np.reshape(key, 1) if one_key else np.broadcast_to(key, index.shape).reshape(-1)
    for first in range(0, image.size, _CHUNK):
        part = slice(first, first + _CHUNK)
        image[part] = _walk_chunk(image[part], n, keys if one_key else keys[part], forward)
    return image.astype(np.int64).reshape(index.shape)


def _walk_chunk(index_N: UInt64s, n: int, keys: UInt64s, forward: bool) -> UInt64s:
    """`permute` of one chunk: keys is uint64 [1] or [N]."""
    image = _feistel(index_N, n, keys, forward)
    outside = np.flatnonzero(image >= n)
    while outside.size:
        image[outside] = _feistel(image[outside], n, keys if keys.size == 1 else keys[outside], forward)
        outside = outside[image[outside] >= n]
    return image


def _feistel(value_N: UInt64s, n: int, keys: UInt64s, forward: bool) -> UInt64s:
    left = math.isqrt(n - 1) + 1
    left += left % 2
    sides = (np.uint64(left), np.uint64(-(-n // left)))
    rounds = range(_ROUNDS_SMALL if n < _SMALL else _ROUNDS_LARGE)
    left_N = value_N // sides[1]
    halves = [left_N, value_N - left_N * sides[1]]
    for number in rounds if forward else reversed(rounds):
        side, other = number % 2, 1 - number % 2
        start = mix(keys + _multiple_of_gamma(number + 1))
        drawn = mix((halves[other] + np.uint64(1)) * np.uint64(GAMMA) + start)
        # 63 bits, so that adding a half, which is below 2**32, cannot wrap.
        step = _remainder(drawn >> np.uint64(1), sides[side])
        total = halves[side] + (step if forward else sides[side] - step)
        # The total is below twice the side, and a difference that wraps around is the larger one.
        halves[side] = np.minimum(total, total - sides[side])
    return np.asarray(halves[0] * sides[1] + halves[1])


def _remainder(x: UInt64s, divisor: np.uint64) -> UInt64s:
    """``x % divisor``, faster: NumPy vectorizes the division by a scalar, but not the remainder."""
    return np.asarray(x - x // divisor * divisor)


def _multiple_of_gamma(count: int) -> np.uint64:
    return np.uint64(count * GAMMA % 2**64)
