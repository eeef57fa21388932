"""Hashes of files, documents and token sequences."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reptrain.files import write_atomically
from reptrain.text.tokenizer import TokenArray

_ODD = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(int(_ODD), -1, 2**64))

Uint64s = npt.NDArray[np.uint64]


@functools.cache
def powers(count: int) -> tuple[Uint64s, Uint64s]:
    """The first powers of an odd number, and of its inverse, modulo 2**64: uint64 [count] each.

    The hash of any part of a sequence is then a difference of two prefix sums, shifted to its start:
    ``(sum[stop] - sum[start]) * inverse[start]``, where ``sum`` is the prefix sum of ``value * power``.
    """
    power, inverse = (np.full(count, base, np.uint64) for base in (_ODD, _INVERSE))
    power[0] = inverse[0] = 1
    return np.multiply.accumulate(power), np.multiply.accumulate(inverse)


def fold(parts: Iterable[Uint64s]) -> Uint64s:
    """Hash several arrays elementwise into one."""
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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksum(path: Path) -> None:
    """Write the SHA-256 of a file next to it, in a file that `sha256sum -c` reads."""
    write_atomically(_checksum_file(path), f"{file_sha256(path)}  {path.name}\n")


def has_checksum(path: Path) -> bool:
    """Whether a file has the SHA-256 that `write_checksum` wrote next to it.

    Raises:
        OSError: If the file or its checksum cannot be read.
    """
    expected = _checksum_file(path).read_text(encoding="utf-8", errors="replace")
    return expected.split()[:1] == [file_sha256(path)]


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def damaged_orders(store: Path) -> list[str]:
    """The cached orders of documents in a store that differ from their checksums."""
    orders = sorted((store / "orders").glob("[!.]*.npy"))
    marked = [path for path in orders if _checksum_file(path).exists()]
    return [
        f"orders/{path.name}: differs from its checksum; remove it, and the next start computes it again"
        for path in marked
        if not has_checksum(path)
    ]


def document_digest(tokens: TokenArray) -> bytes:
    """128-bit hash of a document's tokens as little-endian integers of the store's dtype."""
    little_endian = np.ascontiguousarray(tokens if sys.byteorder == "little" else tokens.byteswap())
    return hashlib.blake2b(little_endian.data, digest_size=16, person=b"reptrain.tokens").digest()
