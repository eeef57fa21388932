"""The seeded order of a split's documents, cached by fingerprint and memory-mapped.

Computed by one pass over the documents' lengths; later openings only hash the file. It is one int64
array [2, N + 1]: row 0 holds the start of each document in the stream (and the end of the stream), row 1 the
index of that document (and -1). Its SHA-256 is next to it: a file that differs from it is computed again.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import platformdirs

from reptrain import random
from reptrain.errors import PlanError
from reptrain.store.hashing import has_checksum, write_checksum

if TYPE_CHECKING:
    from reptrain.store import Split

Int64s = npt.NDArray[np.int64]

# Documents per chunk when an order is computed: bounds the memory in addition to the mapped file.
_CHUNK = 1 << 18


class DocumentOrder(NamedTuple):
    """The position of each document in the stream.

    Args:
        starts: int64 [N + 1], cumulative lengths in the order; the last is the number of tokens.
        documents: int64 [N], index in the split of the document that comes i-th.
    """

    starts: Int64s
    documents: Int64s


def open_order(split: Split, *, name: str, seed: int, beside: Path) -> DocumentOrder:
    """The cached order; computes and caches it if there is none.

    Args:
        split: The documents.
        name: Fingerprint of store, split and seed; the name of the file.
        seed: Seed of the order.
        beside: The store's folder, tried before the user's cache.

    Raises:
        PlanError: If neither folder can be written.
    """
    places = [beside / "orders", Path(platformdirs.user_cache_dir("reptrain")) / "orders"]
    for place in places:
        order = _load(place / f"{name}.npy", split)
        if order is not None:
            return order
    failures = []
    for place in places:
        try:
            _write(place / f"{name}.npy", split, seed)
        except OSError as error:
            failures.append(f"{place}: {error.strerror or error}")
            continue
        order = _load(place / f"{name}.npy", split)
        if order is not None:
            return order
    raise PlanError(
        "order of documents",
        got="; ".join(failures),
        rule="must be cached next to the store or in the user's cache folder",
        remedy="Free space there, or set XDG_CACHE_HOME to a folder that can be written.",
    )


def derive_order(split: Split, *, seed: int) -> DocumentOrder:
    """The order, computed in memory without the cache."""
    table = np.empty((2, split.num_documents + 1), dtype=np.int64)
    _fill(table, split, seed)
    return DocumentOrder(starts=table[0], documents=table[1, :-1])


def _load(path: Path, split: Split) -> DocumentOrder | None:
    """The order in a file, or None if the file is missing, incomplete or differs from its checksum."""
    try:
        if not has_checksum(path):
            return None
        # A plain view: slicing a memmap is slower than searching in it.
        table = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
    fits = table.dtype == np.int64 and table.shape == (2, split.num_documents + 1)
    if not fits or int(table[0, -1]) != split.num_tokens:
        return None
    return DocumentOrder(starts=table[0], documents=table[1, :-1])


def _write(path: Path, split: Split, seed: int) -> None:
    """Write an order under a temporary name, then rename it: concurrent processes are safe.

    Raises:
        OSError: If the folder cannot be written or is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{secrets.token_hex(4)}.npy")
    try:
        table = _allocate(temporary, split.num_documents + 1)
        _fill(table, split, seed)
        table.flush()
        temporary.replace(path)
        write_checksum(path)
    finally:
        temporary.unlink(missing_ok=True)


def _allocate(path: Path, columns: int) -> np.memmap[tuple[int, ...], np.dtype[np.int64]]:
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.int64, shape=(2, columns))
    with path.open("r+b") as file:
        # A full disk must fail here: a later write through the mapping would kill the process.
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return table


def _fill(table: Int64s, split: Split, seed: int) -> None:
    count = split.num_documents
    order_key = random.key(seed, "documents")
    starts, documents = table
    starts[0], documents[count] = 0, -1
    for first, number in _chunks(count):
        index = np.arange(first, first + number, dtype=np.int64)
        place = random.permute(index, count, order_key)
        documents[place] = index
        starts[place + 1] = split.lengths(first, number)
    total = 0
    for first, number in _chunks(count):
        part = starts[first + 1 : first + 1 + number]
        part[0] += total
        np.cumsum(part, out=part)
        total = int(part[-1])


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    for first in range(0, count, _CHUNK):
        yield first, min(_CHUNK, count - first)
