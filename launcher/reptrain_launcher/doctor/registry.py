"""What a check of `reptrain doctor` is, and the facts that the checks read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Level = Literal["warning", "fault"]


class Finding(NamedTuple):
    """Something that is wrong.

    Attributes:
        text: What is wrong, with the value.
        hosts: The hosts to leave out if it cannot be fixed; empty if that would not help.
        level: A fault stops a run or slows it down; a warning is a possible fault.
        remedy: How to fix it; None: the remedy of the check.
    """

    text: str
    hosts: tuple[str, ...] = ()
    level: Level = "fault"
    remedy: str | None = None


class NotApplicableError(Exception):
    """Raised by a check that does not apply, with the reason."""


class Answer(NamedTuple):
    """The facts that a program on a host printed, or why there are none."""

    facts: dict[str, Any]
    stage: Literal["unreachable", "no folder", "no interpreter", "failed", "ok"] = "ok"
    error: str = ""
    sent: float = 0.0
    received: float = 0.0


@dataclass
class Cluster:
    """The facts of all hosts, which the checks read.

    Attributes:
        hosts: Ranks by host, in the order of the hostfile.
        is_remote: Whether the hosts are reached by ssh or srun.
        on_cpu: Whether the ranks use no GPU.
        hostfile: The hostfile as given; None for this machine or a Slurm job.
        hostfile_error: Why the hostfile cannot be read.
        programs: Missing programs of this machine.
        folder: The working folder.
        run: The run folder.
        interpreter: The Python of this machine.
        port: The port where the ranks will meet.
        interface: The network interface that the environment names; None: not named.
        master: The address where the ranks will meet; None if unknown.
        answers: Facts of each host.
        meetings: Result of the meeting by host.
        links: Bytes per second of an all-reduce by pair of hosts, or the error.
        sent: Variables that are sent, with hashes of their values.
        arrived: What arrived, by host; None: not tested.
        arrival_error: Output of the launcher, if a host did not answer.
        time_limit_s: Time limit of the run; None: no limit.
        signal_delay_s: Seconds before the limit at which the run is stopped.
        checkpoint_bytes: Size of a checkpoint; None if unknown.
        writes_at_stop: Checkpoints that a stop may wait for.
    """

    hosts: dict[str, int]
    is_remote: bool
    on_cpu: bool
    folder: str
    run: str
    interpreter: str
    port: int
    hostfile: str | None = None
    hostfile_error: str | None = None
    programs: tuple[str, ...] = ()
    interface: str | None = None
    master: str | None = None
    answers: dict[str, Answer] = field(default_factory=dict)
    meetings: dict[str, dict[str, Any]] = field(default_factory=dict)
    links: dict[tuple[str, str], float | str] = field(default_factory=dict)
    sent: dict[str, str | None] = field(default_factory=dict)
    arrived: dict[str, dict[str, str | None]] | None = None
    arrival_error: str = ""
    time_limit_s: float | None = None
    signal_delay_s: float = 120.0
    checkpoint_bytes: int | None = None
    writes_at_stop: int = 1

    def known(self, fact: str) -> Iterator[tuple[str, Any]]:
        """A fact of each host that reported it."""
        for host, answer in self.answers.items():
            if answer.stage == "ok" and answer.facts.get(fact) is not None:
                yield host, answer.facts[fact]

    @property
    def first(self) -> str:
        """The host of rank 0."""
        return next(iter(self.hosts))


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        id: Name of the check and of its entry in docs/troubleshooting.md.
        reads: What the check reads.
        remedy: How to fix a finding.
        run: Yields the findings.
    """

    id: str
    reads: str
    remedy: str
    run: Callable[[Cluster], Iterable[Finding]]


CHECKS: dict[str, Check] = {}
"""All checks by id, in the order of the table."""


def check(
    id: str, *, reads: str, remedy: str
) -> Callable[[Callable[[Cluster], Iterable[Finding]]], Callable[[Cluster], Iterable[Finding]]]:
    """Register a function as a check."""

    def register(run: Callable[[Cluster], Iterable[Finding]]) -> Callable[[Cluster], Iterable[Finding]]:
        assert id not in CHECKS, id
        CHECKS[id] = Check(id, reads, remedy, run)
        return run

    return register


def minority(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most frequent value (the first one of equally frequent values), and the hosts with another value.

    >>> minority({"a": 1, "b": 2, "c": 1})
    (1, {'b': 2})
    """
    counts = Counter(repr(value) for value in values.values())
    usual = next((value for value in values.values() if counts[repr(value)] == max(counts.values())), None)
    return usual, {host: value for host, value in values.items() if value != usual}


def named(hosts: Sequence[str]) -> str:
    """Hosts in a message, at most eight of them."""
    shown = ", ".join(hosts[:8])
    return shown if len(hosts) <= 8 else f"{shown} and {len(hosts) - 8} more"
