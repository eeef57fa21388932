"""How much of the held-out text also occurs in the training text, counted in 13-grams of token ids.

A 13-gram is 13 consecutive tokens of one document, without its EOS. With n = 3 for brevity:

train  a b c d EOS    held out  b c d e EOS x y EOS  ->  b c d, shared; c d e, not; x y is too short
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reptrain.store.hashing import mix, powers
from reptrain.store.manifest import SplitInfo, SplitName, StoreManifest
from reptrain.store.shards import ShardReader

NGRAM = 13
WORST_DOCUMENTS = 10
# More held-out 13-grams than this are sampled by their hash, to bound the memory.
_SAMPLE = 1 << 20
_CHUNK_TOKENS = 1 << 18
_FILTER_BYTES = 1 << 26

Uint64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SharedDocument:
    """A held-out document that shares 13-grams with the training text."""

    id: str
    ngrams: int
    shared: int


@dataclass(frozen=True)
class Overlap:
    """The 13-grams of a held-out split, how many the training text shares, and the documents with most of
    them.

    Counts are of a sample: the fraction ``sampled`` of all distinct 13-grams, chosen by their hash.
    `distinct` counts each 13-gram once, `ngrams` counts every occurrence in the split.
    """

    split: SplitName
    distinct: int
    distinct_shared: int
    ngrams: int
    ngrams_shared: int
    sampled: float
    documents: tuple[SharedDocument, ...]

    @property
    def distinct_share(self) -> float:
        """Fraction of the distinct 13-grams that also occur in the training text."""
        return self.distinct_shared / max(1, self.distinct)

    @property
    def share(self) -> float:
        """The same fraction over all occurrences in the split."""
        return self.ngrams_shared / max(1, self.ngrams)

    def as_json(self) -> dict[str, Any]:
        """All values for JSON."""
        return {
            "split": self.split,
            "n": NGRAM,
            "distinct": self.distinct,
            "distinct_shared": self.distinct_shared,
            "distinct_share": self.distinct_share,
            "ngrams": self.ngrams,
            "ngrams_shared": self.ngrams_shared,
            "share": self.share,
            "sampled": self.sampled,
            "documents": [vars(document) for document in self.documents],
        }

    def text(self) -> str:
        """One line of text."""
        if self.ngrams == 0:
            return f"{self.split}: not measured, as none of its documents has {NGRAM} tokens before the EOS"
        sample = "" if self.sampled == 1 else f" (of a sample of {self.sampled:.2%})"
        return (
            f"{self.split}: {self.distinct_share:.2%} of {self.distinct:,} distinct {NGRAM}-grams of tokens"
            f"{sample} also occur in train, {self.share:.2%} of all {self.ngrams:,}"
        )


def measure_overlap(
    path: Path, manifest: StoreManifest, progress: Callable[[int, int], None] | None = None
) -> list[Overlap]:
    """The overlap of `select` and of `report` with `train`.

    Memory does not grow with the training text, which is read once, shard by shard.

    Args:
        path: The store's folder, with verified shards.
        manifest: Its manifest.
        progress: Called with the bytes done and all bytes.

    Raises:
        StoreError: If a shard cannot be read.
    """
    names: tuple[SplitName, ...] = ("select", "report")
    held_out = sum(manifest.splits[name].tokens for name in names)
    sampled = min(1.0, _SAMPLE / max(1, held_out))
    grams = {name: _held_out(path, manifest.splits[name], sampled) for name in names}
    known = np.unique(np.concatenate([hashes for hashes, _ in grams.values()]))
    shared = _shared(path, manifest.splits["train"], known, sampled, progress)
    return [_report(name, path, manifest, grams[name], known[shared], sampled) for name in names]


def ngram_hashes(tokens: npt.NDArray[Any], offsets: npt.NDArray[Any]) -> Iterator[tuple[Uint64s, Int64s]]:
    """Hashes of all 13-grams of some documents, and the position of each, chunk by chunk.

    Args:
        tokens: unsigned [T], concatenated documents, each with its EOS.
        offsets: integers [D + 1], the start of each document, and the end of the last.
    """
    power, inverse = powers(_CHUNK_TOKENS + NGRAM)
    lengths = np.diff(offsets).astype(np.int64)
    # A document of n tokens, including EOS, has n - 13 of them.
    first = np.flatnonzero(lengths > NGRAM)
    starts, counts = offsets[first].astype(np.int64), lengths[first] - NGRAM
    base = int(offsets[0])
    for low in range(base, int(offsets[-1]), _CHUNK_TOKENS):
        high = min(low + _CHUNK_TOKENS, int(offsets[-1]))
        window = tokens[low : high + NGRAM - 1].astype(np.uint64) + np.uint64(1)
        total = np.zeros(len(window) + 1, np.uint64)
        np.cumsum(window * power[: len(window)], out=total[1:])
        at = _inside(starts, counts, low, high) - low
        yield mix((total[at + NGRAM] - total[at]) * inverse[at]), at + low


def _inside(starts: Int64s, counts: Int64s, low: int, high: int) -> Int64s:
    """The positions of all ranges [start, start + count) within [low, high)."""
    first = int(np.searchsorted(starts + counts, low, side="right"))
    last = int(np.searchsorted(starts, high, side="left"))
    begin = np.maximum(starts[first:last], low)
    count = np.minimum(starts[first:last] + counts[first:last], high) - begin
    places: Int64s = np.arange(int(count.sum())) + np.repeat(begin - (np.cumsum(count) - count), count)
    return places


def _is_sampled(hashes: Uint64s, sampled: float) -> npt.NDArray[np.bool_]:
    if sampled == 1:
        return np.ones(len(hashes), np.bool_)
    return hashes < np.uint64(int(sampled * 2**64))


def _held_out(path: Path, info: SplitInfo, sampled: float) -> tuple[Uint64s, Int64s]:
    """Hashes of a split's 13-grams, or of a sample, and the document of each."""
    hashes, documents = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    before = 0
    for shard in info.shards:
        reader = ShardReader(path / shard.file, shard)
        for tokens, offsets in zip(reader.tokens, reader.offsets, strict=True):
            for hash_, at in ngram_hashes(tokens, offsets):
                kept = _is_sampled(hash_, sampled)
                hashes.append(hash_[kept])
                documents.append(before + np.searchsorted(offsets, at[kept], side="right") - 1)
            before += len(offsets) - 1
    return np.concatenate(hashes), np.concatenate(documents)


def _shared(
    path: Path,
    info: SplitInfo,
    known: Uint64s,
    sampled: float,
    progress: Callable[[int, int], None] | None,
) -> npt.NDArray[np.bool_]:
    """Which of the sorted hashes occur in the training text."""
    shared = np.zeros(len(known), np.bool_)
    # A small hash table rules out most 13-grams before the binary search.
    slots = np.zeros(min(_FILTER_BYTES, 1 << (16 * len(known) + 1).bit_length()), np.bool_)
    mask = np.uint64(len(slots) - 1)
    slots[known & mask] = True
    done, total = 0, sum(shard.bytes for shard in info.shards)
    for shard in info.shards:
        reader = ShardReader(path / shard.file, shard)
        for tokens, offsets in zip(reader.tokens, reader.offsets, strict=True):
            for hash_, _ in ngram_hashes(tokens, offsets):
                maybe = hash_[slots[hash_ & mask] & _is_sampled(hash_, sampled)]
                place = np.searchsorted(known, maybe)
                place = place[known[np.minimum(place, len(known) - 1)] == maybe] if len(known) else place[:0]
                shared[place] = True
        done += shard.bytes
        if progress:
            progress(done, total)
    return shared


def _report(
    name: SplitName,
    path: Path,
    manifest: StoreManifest,
    grams: tuple[Uint64s, Int64s],
    shared: Uint64s,
    sampled: float,
) -> Overlap:
    hashes, documents = grams
    is_shared = np.isin(hashes, shared)
    count = np.bincount(documents[is_shared], minlength=1)
    every = np.bincount(documents, minlength=len(count))
    worst = np.argsort(-count, kind="stable")[:WORST_DOCUMENTS]
    return Overlap(
        split=name,
        distinct=len(np.unique(hashes)),
        distinct_shared=len(np.unique(hashes[is_shared])),
        ngrams=len(hashes),
        ngrams_shared=int(is_shared.sum()),
        sampled=sampled,
        documents=tuple(
            SharedDocument(_document_id(path, manifest.splits[name], index), int(every[index]), number)
            for index in worst.tolist()
            if (number := int(count[index]))
        ),
    )


def _document_id(path: Path, info: SplitInfo, index: int) -> str:
    for shard in info.shards:
        if index < shard.documents:
            return str(ShardReader(path / shard.file, shard).text("id", index))
        index -= shard.documents
    raise IndexError(index)
