"""The ledger: the global indices that each step consumed, and the digest of the model's inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from reptrain.runs.records import FrozenRecord, JsonLines

Whole = Annotated[int, Field(ge=0, strict=True)]
Hex16 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class SourceShare(FrozenRecord):
    """One source's part of a step, in a mixture."""

    windows: Whole
    """Windows of the source in the step; may be 0."""
    tokens: Whole
    """Tokens of these windows."""
    epoch: Whole
    """Epoch of the source's next window at the step's start."""


class LedgerRecord(FrozenRecord):
    """One attempt at a step."""

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
    applied: bool
    """Whether the optimizer applied the step."""
    digest: Hex16
    """Sum of the windows' digests, in hexadecimal."""
    inputs: Hex16 | None = None
    """Input digest (docs/format.md), in hexadecimal; None in run formats 1 and 2."""
    targets: Whole | None = None
    """Number of targets; None in run formats 1 and 2."""
    sources: dict[str, SourceShare] | None = None
    """In a mixture, each source's part by name; None in a run on one store."""


class Ledger(JsonLines[LedgerRecord]):
    """The ledger of a run: `ledger.jsonl`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, TypeAdapter(LedgerRecord))

    def end(self) -> int:
        """One more than the largest step; 0 if there is no record."""
        return max((record.step + 1 for record in self.records()), default=0)
