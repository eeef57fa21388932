"""Which job arrays a study submits: one a level, with dependencies that Slurm resolves by itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reptrain.study.executor import Job


@dataclass(frozen=True)
class JobArray:
    """Jobs that are submitted together.

    Attributes:
        jobs: The jobs, in the order of their indices.
        corresponds_to: Number of an earlier array: each job waits for that one's job of the same index
            (``aftercorr``).
        after: Jobs that must be done first, for an array of one job.
        follows: Jobs that must have ended first, for an array of one job.
    """

    jobs: tuple[Job, ...]
    corresponds_to: int | None = None
    after: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()


def plan_arrays(jobs: Sequence[Job], known: Mapping[str, object] | None = None) -> list[JobArray]:
    """Group jobs into arrays, so that jobs with one predecessor wait by ``aftercorr``.

    Slurm pairs the indices of two arrays. So an array puts the jobs with most successors first, and the n-th
    successors of its jobs form one array, in the same order.

    Args:
        jobs: The jobs, predecessors first.
        known: Jobs that are in Slurm's queue already, by name: others may wait for them.

    Returns:
        The arrays in the order of submission.
    """
    ours = {job.name for job in jobs}
    needs = {job.name: [*dict.fromkeys((*job.after, *job.follows))] for job in jobs}
    before = {name: [n for n in needed if n in ours] for name, needed in needs.items()}
    waits = {name: [n for n in needed if n in (known or {})] for name, needed in needs.items()}
    # Only these can be paired by index.
    parent = {name: found[0] for name, found in before.items() if len(found) == 1 and not waits[name]}
    num_children = Counter(parent.values())
    level: dict[str, int] = {}
    for job in jobs:
        level[job.name] = 1 + max((level[name] for name in before[job.name]), default=-1)
    arrays: list[JobArray] = []
    place: dict[str, tuple[int, int]] = {}

    def add(members: Sequence[Job], corresponds_to: int | None = None) -> None:
        for index, member in enumerate(members):
            place[member.name] = (len(arrays), index)
        arrays.append(JobArray(tuple(members), corresponds_to))

    for number in range(1 + max(level.values(), default=-1)):
        here = [job for job in jobs if level[job.name] == number]
        free = [job for job in here if not before[job.name] and not waits[job.name]]
        if free:
            add(sorted(free, key=lambda job: -num_children[job.name]))
        for (origin, _), members in sorted(_siblings(here, parent, place).items()):
            members.sort(key=lambda job: place[parent[job.name]][1])
            if [place[parent[job.name]][1] for job in members] == [*range(len(members))]:
                add(members, origin)
        for job in here:
            if job.name not in place:
                place[job.name] = (len(arrays), 0)
                arrays.append(JobArray((job,), after=job.after, follows=job.follows))
    return arrays


def _siblings(
    jobs: Sequence[Job], parent: Mapping[str, str], place: Mapping[str, tuple[int, int]]
) -> dict[tuple[int, int], list[Job]]:
    """The jobs with one predecessor, by its array and their number among its successors."""
    seen: Counter[str] = Counter()
    groups: defaultdict[tuple[int, int], list[Job]] = defaultdict(list)
    for job in jobs:
        if job.name in parent:
            origin = parent[job.name]
            groups[place[origin][0], seen[origin]].append(job)
            seen[origin] += 1
    return groups
