"""The ledger: the windows that each step consumed, with digests of the model's inputs, as a chain of lines.

docs/format.md defines the lines, the digests and the chain.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter

from reptrain.runs.records import FrozenRecord, JsonLines

Whole = Annotated[int, Field(ge=0, strict=True)]
Hex16 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
LineHash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

NO_LINE = "0" * 32
"""What the first line of a ledger has for the hash of the line before it."""


class SourceShare(FrozenRecord):
    """One source's part of a step, in a mixture."""

    windows: Whole
    """Windows of the source in the step; may be 0."""
    tokens: Whole
    """Tokens of these windows."""
    epoch: Whole
    """Epoch of the source's next window at the step's start."""


class LedgerRecord(FrozenRecord):
    """One attempt at a step. Run formats 1 and 2 have none of the fields that may be None but `sources`."""

    step: Whole
    """The step, from 0."""
    first_index: Whole
    """First global index."""
    windows: Annotated[int, Field(gt=0, strict=True)]
    """Number of consecutive global indices."""
    tokens: Whole
    """Tokens of these windows."""
    epoch: Whole
    """Epoch of the first index, within its source."""
    applied: Annotated[bool, Field(strict=True)]
    """Whether the optimizer applied the step."""
    digest: Hex16
    """Sum of the windows' digests, in hexadecimal."""
    inputs: Hex16 | None = None
    """Input digest (docs/format.md), in hexadecimal."""
    targets: Whole | None = None
    """Number of targets."""
    optimizer_step: Whole | None = None
    """Updates of the weights after the attempt; None for an optimizer that does not count them."""
    grad_norm: float | None = None
    """L2 norm of the gradient before clipping; None if unknown."""
    slice: tuple[Hex16, Hex16] | None = None
    """Hash of some of the weights before and after the update."""
    sources: dict[str, SourceShare] | None = None
    """In a mixture, each source's part by name; None in a run on one store."""
    previous: LineHash | None = None
    """Hash of the line before."""


class LedgerHead(FrozenRecord):
    """A line of another run's ledger."""

    head: LineHash
    """Hash of the line."""
    step: Whole
    """Steps completed there."""


class LedgerEvent(FrozenRecord):
    """A line that is no step."""

    event: Literal["start", "resume", "checkpoint"]
    """What happened."""
    step: Whole
    """Steps completed."""
    format: Whole | None = None
    """Run format, at a start."""
    files: dict[str, Sha256] | None = None
    """SHA-256 of config.yaml and plan.json, at a start or a resumption."""
    state: Hex16 | None = None
    """Hash of weights, optimizer state and counters: saved with a checkpoint, or loaded at a resumption."""
    parent: LedgerHead | None = None
    """At the start of a branch: where it begins in the ledger of its parent."""
    discarded: LineHash | None = None
    """Hash of the last line that was cut off; None if none was."""
    previous: LineHash | None = None
    """Hash of the line before."""


class Line(NamedTuple):
    """A line of the ledger."""

    number: int
    """From 1."""
    record: LedgerRecord | LedgerEvent
    hash: str
    """Hash of its bytes."""


def line_hash(line: bytes) -> str:
    """The hash of a line, without its newline, as the next line has it."""
    return sha256(line.removesuffix(b"\n")).hexdigest()[:32]


class Ledger(JsonLines[LedgerRecord]):
    """The ledger of a run: `ledger.jsonl`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, TypeAdapter(LedgerRecord))
        self._events = TypeAdapter(LedgerEvent)
        self._head: str | None = None
        self._held: list[LedgerRecord | LedgerEvent] | None = None

    def hold(self) -> None:
        """Keep the lines that are appended from now on in memory, until `release`.

        The line of a checkpoint stands before those of later steps, and its state hash is known only after
        some of them.
        """
        self._held = []

    def release(self, first: LedgerEvent | None = None) -> int:
        """Append an event and the lines kept in memory, and flush the event to the disk.

        Args:
            first: The event, which comes before them.

        Returns:
            Size of the file up to the event.
        """
        held, self._held = self._held or [], None
        if first is not None:
            self.append(first)
            self.sync()
        size = self.size()
        for record in held:
            self.append(record)
        return size

    def append(self, record: LedgerRecord | LedgerEvent) -> None:
        """Append one line, with the hash of the line before it.

        The first line of a branch has the head of its parent instead.

        Raises:
            RunError: If the file ends with an incomplete line.
        """
        if self._held is not None:
            self._held.append(record)
            return
        previous = self.head()
        if previous == NO_LINE and isinstance(record, LedgerEvent) and record.parent is not None:
            previous = record.parent.head
        record = record.model_copy(update={"previous": previous})
        line = record.model_dump_json(exclude_none=True).encode() + b"\n"
        self.write(line)
        self._head = line_hash(line)

    def head(self) -> str:
        """Hash of the last whole line; `NO_LINE` without one."""
        if self._head is None:
            self._head = NO_LINE if (line := self._last_line()) is None else line_hash(line)
        return self._head

    def lines(self) -> Iterator[Line]:
        """All whole lines, in the order of the file.

        Raises:
            RunError: Naming the first invalid line.
        """
        for number, line in self.raw_lines():
            if line.startswith(b'{"event":'):
                yield Line(number, self.parse(line, number, self._events), line_hash(line))
            else:
                yield Line(number, self.parse(line, number, self._adapter), line_hash(line))

    def records(self) -> Iterator[LedgerRecord]:
        """The attempts at steps, in the order of the file.

        Raises:
            RunError: Naming the first invalid line.
        """
        return (line.record for line in self.lines() if isinstance(line.record, LedgerRecord))

    def cut(self, size: int) -> None:
        """Truncate the file to its first ``size`` bytes, and flush it."""
        super().cut(size)
        self._head = None

    def remove(self) -> None:
        """Remove the file, if there is one."""
        super().remove()
        self._head = None

    def end(self) -> int:
        """One more than the largest step; 0 if there is no record."""
        return max((record.step + 1 for record in self.records()), default=0)

    def _last_line(self) -> bytes | None:
        """The last whole line; read from the end, so that a long ledger costs nothing."""
        if not self.path.exists():
            return None
        tail, size = b"", 1 << 12
        with self.path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            while True:
                first = max(0, end - size)
                file.seek(first)
                tail = file.read(end - first)
                whole = tail[: tail.rfind(b"\n") + 1]
                begin = whole.rfind(b"\n", 0, -1) + 1
                if begin or first == 0:
                    return whole[begin:] or None
                size *= 2
