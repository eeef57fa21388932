"""Pass 1: hash every document, then decide its status: empty, duplicate, or kept in a split."""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from reptrain.store.manifest import SPLITS
from reptrain.text import Document
from reptrain.text.documents import Fields, count_newlines, read_slice
from reptrain.tokenization.jobs import TokenizeJob
from reptrain.tokenization.near import SignatureWriter
from reptrain.tokenization.strata import Strata, Thresholds, find_thresholds
from reptrain.tokenization.work import Work, read_record, write_array, write_record
from reptrain.tokenize_options import Dedup, NearSettings

# Document status. A kept document has KEPT plus the index of its split.
EMPTY, DUPLICATE, NEAR_DUPLICATE, KEPT = 0, 1, 2, 3
_BUCKET_DOCUMENTS = 1 << 18

Bucket = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]]


class ScanTask(NamedTuple):
    """One job of pass 1."""

    job: TokenizeJob
    fields: Fields
    work: Work
    near: NearSettings | None = None


class Scan(NamedTuple):
    """Result of pass 1 for a job: documents, UTF-8 bytes of text, line ends in each slice, and a digest by
    which pass 2 detects changes.
    """

    documents: int
    text_bytes: int
    newlines: tuple[int, ...]
    slice_documents: tuple[int, ...]
    """Documents in each slice."""
    digest: str

    @classmethod
    def read(cls, path: Path) -> Scan:
        """Read a finished job's record."""
        documents, text_bytes, newlines, slice_documents, digest = read_record(path)
        return cls(documents, text_bytes, tuple(newlines), tuple(slice_documents), digest)


def text_hash(content: bytes) -> bytes:
    """The 128-bit hash of a text in UTF-8, by which equal texts are found and splits are drawn."""
    return hashlib.blake2b(content, digest_size=16, person=b"reptrain.text").digest()


class DocumentDigest:
    """A digest of the texts and metadata of consecutive documents.

    Ids are left out: they have line numbers, which pass 1 does not know yet.
    """

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16, person=b"reptrain.docs")
        self._header: tuple[str, str | None] | None = None

    def add(self, document: Document, content_hash: bytes) -> None:
        """Add a document.

        Args:
            document: The document.
            content_hash: The `text_hash` of its text.
        """
        header = document.source, document.metadata
        if header != self._header:
            self._header = header
            self._digest.update(json.dumps(header).encode())
        self._digest.update(content_hash)

    def hexdigest(self) -> str:
        """The digest of the documents so far."""
        return self._digest.hexdigest()


def scan_job(task: ScanTask) -> Scan:
    """Hash the documents of a job.

    Writes the sorted table uint64 [3, n] of the n documents with text: the high and the low half of the
    128-bit content hash, and the document's index in the job. With near-duplicate detection also the
    documents' signatures. Last the record, which marks the job as done.
    """
    digests, indices = bytearray(), array("Q")
    documents = text_bytes = 0
    ends = [0]
    read = DocumentDigest()
    with ExitStack() as stack:
        signer = stack.enter_context(_signer(task)) if task.near else None
        for part in task.job.slices:
            for document in read_slice(part, task.fields):
                content = document.text.encode()
                content_hash = text_hash(content)
                read.add(document, content_hash)
                if content and not document.text.isspace():
                    digests += content_hash
                    indices.append(documents)
                    text_bytes += len(content)
                if signer:
                    signer.add(document.text)
                documents += 1
            ends.append(documents)
        if signer:
            signer.close()
    index, work = task.job.index, task.work
    write_array(work.hashes(index), _sorted_table(bytes(digests), indices))
    newlines = tuple(_newlines(part.path, part.start, part.stop) for part in task.job.slices)
    scan = Scan(documents, text_bytes, newlines, tuple(np.diff(ends).tolist()), read.hexdigest())
    written = [work.hashes(index), *((work.signatures(index), work.bands(index)) if task.near else ())]
    write_record(work.scan(index), scan, written)
    return scan


def _signer(task: ScanTask) -> SignatureWriter:
    assert task.near is not None
    index = task.job.index
    return SignatureWriter(task.work.signatures(index), task.work.bands(index), task.near)


def _sorted_table(digests: bytes, indices: array[int]) -> npt.NDArray[np.uint64]:
    high, low = np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2).T
    index = np.frombuffer(indices, np.uint64)
    return np.stack([high, low, index])[:, np.lexsort((index, low, high))]


def _newlines(path: Path, start: int, stop: int) -> int:
    return count_newlines(path, start, stop) if path.name.lower().endswith(".jsonl") else 0


def decide(
    work: Work, scans: Sequence[Scan], strata: Strata, *, dedup: Dedup, held_out_fraction: float
) -> npt.NDArray[np.int64]:
    """Write the status of every document, uint8 [documents] for each job.

    Of documents with equal text the first is kept, by (job, index). The content hash decides the split (see
    `reptrain.tokenization.strata`), so that equal texts are always in the same split. Hashes are read range
    by range, to bound the memory.

    Returns:
        Documents by status, int64 [KEPT + number of splits].
    """
    tables = [np.load(work.hashes(index), mmap_mode="r") for index in range(len(scans))]
    statuses = [_allocate(work.statuses(index), scan.documents) for index, scan in enumerate(scans)]
    thresholds = _thresholds(tables, strata, held_out_fraction)
    for job, index, high, low in sweep(tables):
        first = _first_of_equal(high, low)
        decided = (KEPT + thresholds.split_of(low, strata.of(job, index)[first])).astype(np.uint8)
        if dedup != "none":
            decided[first != np.arange(len(first))] = DUPLICATE
        for number in np.unique(job):
            mine = job == number
            statuses[number][index[mine]] = decided[mine]
    counts = np.zeros(KEPT + len(SPLITS), np.int64)
    for status in statuses:
        counts += np.bincount(status, minlength=len(counts))
    return counts


def _thresholds(
    tables: Sequence[npt.NDArray[np.uint64]], strata: Strata, held_out_fraction: float
) -> Thresholds:
    """Thresholds from the distinct texts of each stratum, by two passes over the hashes."""

    def distinct() -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]]:
        for job, index, high, low in sweep(tables):
            is_first = _first_of_equal(high, low) == np.arange(len(low))
            yield low[is_first], strata.of(job[is_first], index[is_first])

    counts = np.zeros(strata.num_strata, np.int64)
    for _, stratum in distinct():
        counts += np.bincount(stratum, minlength=strata.num_strata)
    return find_thresholds(counts, distinct(), held_out_fraction)


def _first_of_equal(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """For sorted hashes, the position of the first equal one, int64 of the same shape."""
    place = np.arange(len(low))
    place[1:][(high[1:] == high[:-1]) & (low[1:] == low[:-1])] = 0
    first: npt.NDArray[np.int64] = np.maximum.accumulate(place)
    return first


def _allocate(path: Path, count: int) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Zeros (EMPTY), memory-mapped.

    Zeros are written first: on a full disk, a later write into a sparse file would kill the process.
    """
    write_array(path, np.zeros(count, np.uint8))
    statuses = np.load(path, mmap_mode="r+")
    assert isinstance(statuses, np.memmap)
    return statuses


def sweep(tables: Sequence[npt.NDArray[np.uint64]]) -> Iterator[Bucket]:
    """All documents with text, in hash order, range by range.

    Args:
        tables: The sorted table of each job.

    Returns:
        Job, index in the job, high and low half of the hash. Equal hashes are in one range, by job and index.
    """
    num_buckets = 1 + sum(table.shape[1] for table in tables) // _BUCKET_DOCUMENTS
    edges = [2**64 * bucket // num_buckets for bucket in range(num_buckets + 1)]
    for low_edge, high_edge in itertools.pairwise(edges):
        parts = [between(table, low_edge, high_edge) for table in tables]
        job = np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])
        high, low, index = np.concatenate(parts, axis=1)
        order = np.lexsort((index, job, low, high))
        yield job[order], index[order].astype(np.int64), high[order], low[order]


def between(table: npt.NDArray[np.uint64], low: int, high: int) -> npt.NDArray[np.uint64]:
    """The columns of a sorted table whose first row is in [low, high)."""
    first = int(np.searchsorted(table[0], np.uint64(low)))
    last = int(np.searchsorted(table[0], np.uint64(high - 1), side="right"))
    return table[:, first:last]
