"""Held-out documents by stratum: a source, a file (or its numbered shards), or a folder of text files.

A document is held out if its content hash is below a threshold. In a large stratum the threshold is the
held-out fraction itself, so that equal texts are in the same split in all stores with that fraction. In a
small stratum the number held out would depend on chance, so the threshold is chosen to give a quota.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reptrain.text.documents import Slice
from reptrain.tokenization.jobs import TokenizeJob

SPLIT_VERSION = 2
# With at least this many held-out documents, their number is within an eighth of its mean without a quota.
_LARGE_HELD_OUT = 64
# More files are taken for parts of a whole; then sources are the strata.
_MOST_STRATA = 256

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]


class Strata(NamedTuple):
    """The stratum of each document of each job."""

    num_strata: int
    ends: tuple[Int64s, ...]
    """For each job, the number of documents up to the end of each slice."""
    numbers: tuple[Int64s, ...]
    """For each job, the stratum of each slice."""

    def of(self, job: Int64s, index: Int64s) -> Int64s:
        """The stratum of documents by job and index in the job, int64 of the same shape."""
        strata = np.zeros(job.shape, np.int64)
        for number in np.unique(job):
            mine = job == number
            place = np.searchsorted(self.ends[number], index[mine], side="right")
            strata[mine] = self.numbers[number][place]
        return strata


def find_strata(jobs: Sequence[TokenizeJob], documents: Sequence[Sequence[int]]) -> Strata:
    """The strata of the jobs' documents.

    Args:
        jobs: The planned jobs.
        documents: Number of documents in each slice of each job.
    """
    for name in (_file_or_folder, _source, _all):
        names = sorted({name(part) for job in jobs for part in job.slices})
        if len(names) <= _MOST_STRATA:
            break
    place = {key: number for number, key in enumerate(names)}
    return Strata(
        len(names),
        tuple(np.cumsum(counts, dtype=np.int64) for counts in documents),
        tuple(np.array([place[name(part)] for part in job.slices], np.int64) for job in jobs),
    )


def _file_or_folder(part: Slice) -> tuple[str, ...]:
    path = PurePosixPath(part.name)
    # A .txt file is one document, so its folder is the stratum. Files whose names differ only in numbers,
    # such as data-00000-of-00002.arrow, are shards of one stratum.
    name = "" if path.name.lower().endswith(".txt") else re.sub(r"\d+", "#", path.name)
    return (part.source, str(path.parent), name)


def _source(part: Slice) -> tuple[str, ...]:
    return (part.source,)


def _all(part: Slice) -> tuple[str, ...]:
    return ()


class Thresholds(NamedTuple):
    """A document whose draw is below `select` is in that split; else below `report`, in that one."""

    select: UInt64s
    """By stratum."""
    report: UInt64s
    """By stratum."""

    def split_of(self, draw: UInt64s, stratum: Int64s) -> Int64s:
        """The documents' index into SPLITS, by draw and stratum."""
        is_select, is_train = draw < self.select[stratum], draw >= self.report[stratum]
        return np.where(is_train, 0, np.where(is_select, 1, 2))


def is_large(counts: Int64s, held_out_fraction: float) -> npt.NDArray[np.bool_]:
    """Which strata need no quota, by their number of documents."""
    large: npt.NDArray[np.bool_] = counts * held_out_fraction >= _LARGE_HELD_OUT
    return large


def find_thresholds(
    counts: Int64s, draws: Iterable[tuple[UInt64s, Int64s]], held_out_fraction: float
) -> Thresholds:
    """The thresholds of each stratum.

    Rounding errors are carried from one small stratum to the next, so that the overall fraction is right.

    Args:
        counts: int64 [strata], distinct documents (or clusters of near-duplicates) of each stratum.
        draws: Draw and stratum of these documents, in parts; large strata may be left out.
        held_out_fraction: Fraction of the documents to hold out.
    """
    held_out = int(held_out_fraction * 2**64)
    select = np.full(len(counts), held_out // 2, np.uint64)
    report = np.full(len(counts), held_out, np.uint64)
    small = ~is_large(counts, held_out_fraction)
    parts = [(draw[small[stratum]], stratum[small[stratum]]) for draw, stratum in draws]
    draw = np.concatenate([np.zeros(0, np.uint64), *(part for part, _ in parts)])
    stratum = np.concatenate([np.zeros(0, np.int64), *(part for _, part in parts)])
    order = np.lexsort((draw, stratum))
    draw, stratum = draw[order], stratum[order]
    begins = np.flatnonzero(np.diff(stratum, prepend=-1))
    groups = np.split(draw, begins[1:]) if len(begins) else []
    # Sorted by lowest draw, which depends on the texts, not on names or the order of the sources.
    ordered = sorted(zip(groups, stratum[begins], strict=True), key=lambda pair: int(pair[0][0]))
    seen, taken = 0, 0
    for group, number in ordered:
        seen += len(group)
        # `select` and `report` get equal numbers.
        half = min(int(seen * held_out_fraction / 2 + 0.5) - taken, len(group) // 2)
        taken += half
        ends = np.append(group, np.uint64(2**64 - 1))
        select[number], report[number] = (ends[half], ends[2 * half]) if half else (0, 0)
    return Thresholds(select, report)
