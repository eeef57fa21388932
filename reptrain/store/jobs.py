"""From sources to jobs: which lines of which files each worker reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reptrain.errors import TextError
from reptrain.text.documents import SUFFIXES, Slice, cut_lines, file_bytes, source_name, suffix_of

_SMALLEST_JOB_BYTES = 1 << 20
# A job writes up to three shards; all of them can then be mapped under the usual limit of 1,024 open files.
_MOST_JOBS = 256


class SourceFile(NamedTuple):
    """A file to read: ``name`` is its place below the source, ``label`` the same with the source."""

    path: Path
    name: str
    label: str
    source: str
    size: int


@dataclass(frozen=True)
class Job:
    """An independent piece of work, about equal in bytes to the others."""

    index: int
    slices: tuple[Slice, ...]

    @property
    def size(self) -> int:
        """Bytes of the sources that it reads, compressed where they are."""
        return sum(part.stop - part.start for part in self.slices)


def expand_sources(sources: Sequence[Path]) -> list[SourceFile]:
    """The files of all sources, in order; a folder stands for the text files below it, sorted.

    Raises:
        TextError: If a file is missing, empty or of another kind, or a folder holds none.
    """
    return [file for path in sources for file in (_below(path) if path.is_dir() else [_single(path)])]


def _single(path: Path) -> SourceFile:
    return SourceFile(path, path.name, path.name, source_name(path), file_bytes(path))


def _below(folder: Path) -> Iterator[SourceFile]:
    paths = sorted(
        path
        for path in folder.rglob("*")
        if suffix_of(path) and path.is_file() and not _hidden(path.relative_to(folder))
    )
    if not paths:
        raise TextError(
            f"source {folder}",
            got="none",
            rule=f"must hold files that end in {', '.join(SUFFIXES)}",
            remedy="Name the files or another folder.",
        )
    label = folder.resolve().name
    for path in paths:
        name = path.relative_to(folder).as_posix()
        yield SourceFile(path, name, f"{label}/{name}", label, file_bytes(path))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def plan_jobs(files: Sequence[SourceFile]) -> list[Job]:
    """Cut the files into jobs of about equal size.

    A function of the files alone, never of the number of processes: the shards are the same for any.
    """
    job_bytes = max(_SMALLEST_JOB_BYTES, -(-sum(file.size for file in files) // _MOST_JOBS))
    groups: list[list[Slice]] = [[]]
    filled = 0
    for part in (part for file in files for part in _slices(file, job_bytes)):
        if filled >= job_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(part)
        filled += part.stop - part.start
    return [Job(index, tuple(group)) for index, group in enumerate(groups) if group]


def _slices(file: SourceFile, slice_bytes: int) -> list[Slice]:
    ranges = [(0, file.size)]
    if suffix_of(file.path) == ".jsonl":
        ranges = cut_lines(file.path, file.size, slice_bytes)
    return [
        Slice(file.path, file.name, file.source, start, stop, first_line=None if start else 1)
        for start, stop in ranges
    ]


def number_lines(jobs: Sequence[Job], newlines: Sequence[Sequence[int]]) -> list[Job]:
    """The jobs with the first line of every slice known.

    Args:
        jobs: As planned.
        newlines: Line ends in each slice of each job.
    """
    numbered = []
    line = 1
    for job, counts in zip(jobs, newlines, strict=True):
        slices = []
        for part, count in zip(job.slices, counts, strict=True):
            line = 1 if part.start == 0 else line
            slices.append(part._replace(first_line=line))
            line += count
        numbered.append(Job(job.index, tuple(slices)))
    return numbered


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
