"""Clusters of near-duplicates: candidate pairs by bands, verified by signatures, joined by union-find."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reptrain.store.manifest import SPLITS
from reptrain.tokenization.near import open_bands, open_signatures
from reptrain.tokenization.scan import DUPLICATE, KEPT, NEAR_DUPLICATE, Scan, between, sweep
from reptrain.tokenization.strata import Strata, find_thresholds
from reptrain.tokenization.work import Work
from reptrain.tokenize_options import Dedup, NearSettings

# Each document is compared with at most this many neighbors in a band, so that large groups stay cheap.
_NEIGHBORS = 64
_BUCKET_DOCUMENTS = 1 << 18
_PAIRS = 1 << 14

Int64s = npt.NDArray[np.int64]


class Decided(NamedTuple):
    """Documents by status, and clusters of near-duplicates."""

    counts: Int64s
    """Documents by status, int64 [KEPT + number of splits]."""
    clusters: int
    """Clusters of two and more documents."""
    largest: int
    """Documents of the largest cluster."""


def decide_near(
    work: Work,
    scans: Sequence[Scan],
    settings: NearSettings,
    strata: Strata,
    *,
    dedup: Dedup,
    held_out_fraction: float,
    progress: Callable[[int, int], None],
) -> Decided:
    """Update the statuses that `decide` wrote, so that each cluster of near-duplicates is in one split.

    ``minhash`` keeps only the first document of a cluster, by (job, index). The smallest content hash in a
    cluster decides its split, and the document with that hash its stratum.

    Args:
        work: With the hashes, signatures, bands and statuses of every job.
        scans: The records of the jobs.
        settings: How near-duplicates are detected.
        strata: The same as for `decide`.
        dedup: `minhash` or `group`.
        held_out_fraction: The same as for `decide`.
        progress: Called with the bands done and all bands.
    """
    first = np.cumsum([0, *(scan.documents for scan in scans)])
    distinct = np.concatenate(
        [np.zeros(0, np.bool_), *(np.load(work.statuses(job)) >= KEPT for job in range(len(scans)))]
    )
    root = find_clusters(work, scans, settings, distinct, progress)
    _assign_splits(work, first, root, strata, dedup, held_out_fraction)
    sizes = np.bincount(root[distinct], minlength=1)
    counts = np.zeros(KEPT + len(SPLITS), np.int64)
    for job in range(len(scans)):
        counts += np.bincount(np.load(work.statuses(job)), minlength=len(counts))
    sizes = sizes[sizes > 1]
    return Decided(counts, len(sizes), int(sizes.max(initial=0)))


def find_clusters(
    work: Work,
    scans: Sequence[Scan],
    settings: NearSettings,
    distinct: npt.NDArray[np.bool_],
    progress: Callable[[int, int], None],
) -> Int64s:
    """The first document of each document's cluster, int64 [documents], numbered through all jobs.

    Two documents are joined if they agree in a band and in at least ``threshold`` of their signatures'
    entries. Of documents with equal text only the first takes part.

    Args:
        work: With the signatures and bands of every job.
        scans: The records of the jobs.
        settings: Bands, rows and threshold.
        distinct: bool [documents], which documents take part.
        progress: Called with the bands done and all bands.
    """
    first = np.cumsum([0, *(scan.documents for scan in scans)])
    root = np.arange(len(distinct))
    num_buckets = 1 + len(distinct) // _BUCKET_DOCUMENTS
    edges = [2**64 * bucket // num_buckets for bucket in range(num_buckets + 1)]
    bands = [open_bands(work.bands(job), settings) for job in range(len(scans))]
    for band in range(settings.bands):
        tables = [np.asarray(table[band]) for table in bands]
        for low, high in itertools.pairwise(edges):
            for left, right in _candidates(_members(tables, first, (low, high), distinct)):
                apart = find(root, left) != find(root, right)
                left, right = left[apart], right[apart]
                alike = _alike(work, first, settings, left, right)
                unite(root, left[alike], right[alike])
        progress(band + 1, settings.bands)
    return find(root, root)


def find(root: Int64s, members: Int64s) -> Int64s:
    """The first document of each member's cluster."""
    while True:
        above = root[members]
        if np.array_equal(above, members):
            return members
        members = above


def unite(root: Int64s, left: Int64s, right: Int64s) -> None:
    """Union clusters pair by pair; each document points to an earlier one of its cluster, or to itself."""
    members = np.concatenate([left, right])
    while len(left):
        left, right = find(root, left), find(root, right)
        apart = left != right
        left, right = left[apart], right[apart]
        np.minimum.at(root, np.maximum(left, right), np.minimum(left, right))
    root[members] = find(root, members)


def _members(
    tables: Sequence[npt.NDArray[np.uint64]],
    first: Int64s,
    edges: tuple[int, int],
    distinct: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.uint64], Int64s]:
    """The documents that share a band's hash within a range, sorted by hash. ``tables`` are of the band."""
    hashes, members = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for job, table in enumerate(tables):
        part = between(table, *edges)
        hashes.append(part[0])
        members.append(part[1].astype(np.int64) + first[job])
    hash_, member = np.concatenate(hashes), np.concatenate(members)
    hash_, member = hash_[distinct[member]], member[distinct[member]]
    order = np.lexsort((member, hash_))
    hash_, member = hash_[order], member[order]
    shared = np.zeros(len(hash_), np.bool_)
    shared[1:] = hash_[1:] == hash_[:-1]
    shared[:-1] |= shared[1:]
    return hash_[shared], member[shared]


def _candidates(sorted_members: tuple[npt.NDArray[np.uint64], Int64s]) -> Iterator[tuple[Int64s, Int64s]]:
    """Pairs of documents with equal hashes, adjacent ones first."""
    hash_, member = sorted_members
    for offset in range(1, _NEIGHBORS + 1):
        at = np.flatnonzero(hash_[offset:] == hash_[:-offset])
        if len(at) == 0:
            return
        for start in range(0, len(at), _PAIRS):
            part = at[start : start + _PAIRS]
            yield member[part], member[part + offset]


def _alike(
    work: Work, first: Int64s, settings: NearSettings, left: Int64s, right: Int64s
) -> npt.NDArray[np.bool_]:
    """Which pairs have an estimated similarity of at least the threshold."""
    members, place = np.unique(np.concatenate([left, right]), return_inverse=True)
    signatures = np.empty((len(members), settings.permutations), np.uint32)
    job = np.searchsorted(first, members, side="right") - 1
    for number in np.unique(job):
        mine = job == number
        signatures[mine] = open_signatures(work.signatures(number), settings)[members[mine] - first[number]]
    left_place, right_place = place[: len(left)], place[len(left) :]
    equal = np.count_nonzero(signatures[left_place] == signatures[right_place], axis=1)
    needed = math.ceil(settings.threshold * settings.permutations - 1e-9)
    alike: npt.NDArray[np.bool_] = equal >= needed
    return alike


def _assign_splits(
    work: Work, first: Int64s, root: Int64s, strata: Strata, dedup: Dedup, held_out_fraction: float
) -> None:
    """Assign each cluster to one split, by its smallest content hash, and drop near-duplicates."""
    jobs = range(len(first) - 1)
    tables = [np.load(work.hashes(number), mmap_mode="r") for number in jobs]
    statuses = [np.load(work.statuses(job), mmap_mode="r+") for job in jobs]
    draw, drawn = np.zeros(len(root), np.uint64), np.zeros(len(root), np.bool_)
    stratum = np.zeros(len(root), np.int64)
    for job, index, _, low in sweep(tables):
        # In hash order, so the first document of a cluster has its smallest hash.
        cluster = root[first[job] + index]
        new, at = np.unique(cluster, return_index=True)
        new, at = new[~drawn[new]], at[~drawn[new]]
        draw[new], drawn[new] = low[at], True
        stratum[new] = strata.of(job[at], index[at])
    # Of equal texts only the first is in a cluster; the others are their own roots.
    alone = np.concatenate([np.zeros(0, np.bool_), *(status != DUPLICATE for status in statuses)])
    units = np.flatnonzero(drawn & alone)
    counts = np.bincount(stratum[units], minlength=strata.num_strata)
    thresholds = find_thresholds(counts, [(draw[units], stratum[units])], held_out_fraction)
    for job, index, _, _ in sweep(tables):
        document = first[job] + index
        cluster = root[document]
        decided = KEPT + thresholds.split_of(draw[cluster], stratum[cluster])
        if dedup == "minhash":
            decided[cluster != document] = NEAR_DUPLICATE
        for number in np.unique(job):
            mine = np.flatnonzero(job == number)
            mine = mine[statuses[number][index[mine]] != DUPLICATE]
            statuses[number][index[mine]] = decided[mine]
