"""Jobs: which lines of which files each worker reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reptrain.text.documents import Fields, Slice, cut_slice
from reptrain.text.sources import SourceFile

_SMALLEST_JOB_BYTES = 1 << 20
# A job writes up to three shards: with 256 jobs all can be mapped under the usual limit of 1,024 open files.
_MOST_JOBS = 256


@dataclass(frozen=True)
class TokenizeJob:
    """An independent part of the sources. Jobs have about equal sizes."""

    index: int
    slices: tuple[Slice, ...]

    @property
    def size(self) -> int:
        """Bytes to read from the files, compressed or not."""
        return sum(part.stop - part.start for part in self.slices)


def plan_jobs(files: Sequence[SourceFile], fields: Fields) -> list[TokenizeJob]:
    """Cut the files into jobs of about equal size.

    Depends on the files alone, not on the number of processes, and so do the shards.

    Raises:
        TextError: If a table cannot be read, is empty or lacks a column.
    """
    job_bytes = max(_SMALLEST_JOB_BYTES, -(-sum(file.size for file in files) // _MOST_JOBS))
    groups: list[list[Slice]] = [[]]
    filled = 0
    for part in (part for file in files for part in _slices(file, fields, job_bytes)):
        if filled >= job_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(part)
        filled += part.stop - part.start
    return [TokenizeJob(index, tuple(group)) for index, group in enumerate(groups) if group]


def _slices(file: SourceFile, fields: Fields, slice_bytes: int) -> list[Slice]:
    return cut_slice(
        Slice(file.path, file.name, file.source, 0, file.size, url=file.url), fields, slice_bytes
    )


def number_lines(jobs: Sequence[TokenizeJob], newlines: Sequence[Sequence[int]]) -> list[TokenizeJob]:
    """The jobs, with the number of the first line set in every slice.

    Args:
        jobs: The planned jobs.
        newlines: Number of line ends in each slice of each job.
    """
    numbered = []
    line = 1
    for job, counts in zip(jobs, newlines, strict=True):
        slices = []
        for part, count in zip(job.slices, counts, strict=True):
            line = line if part.first_line is None else part.first_line
            slices.append(part._replace(first_line=line))
            line += count
        numbered.append(TokenizeJob(job.index, tuple(slices)))
    return numbered
