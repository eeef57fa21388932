"""Hashes of sequences, vectorised: polynomials modulo 2**64, and a mixer."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

_ODD = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(int(_ODD), -1, 2**64))

Uint64s = npt.NDArray[np.uint64]


@functools.cache
def powers(count: int) -> tuple[Uint64s, Uint64s]:
    """The first powers of an odd number, and of its inverse, modulo 2**64: uint64 [count] each.

    With them the hash of any part of a sequence is a difference of two sums, moved to the part's start:
    ``(sum[stop] - sum[start]) * inverse[start]`` where ``sum`` adds ``value * power`` up.
    """
    power, inverse = (np.full(count, base, np.uint64) for base in (_ODD, _INVERSE))
    power[0] = inverse[0] = 1
    return np.multiply.accumulate(power), np.multiply.accumulate(inverse)


def fold(parts: Iterable[Uint64s]) -> Uint64s:
    """One hash of several arrays, place by place."""
    parts = iter(parts)
    folded = next(parts)
    for part in parts:
        folded = folded * _ODD + part
    return mix(folded)


def mix(values: Uint64s) -> Uint64s:
    """The finalizer of splitmix64 (Steele et al. 2014), a bijection."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Uint64s = values ^ (values >> np.uint64(31))
    return mixed
