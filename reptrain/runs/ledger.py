"""The ledger: which global indices each step consumed, and the digest of what the model saw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from reptrain.runs.records import FrozenRecord, JsonLines

Whole = Annotated[int, Field(ge=0, strict=True)]


class SourceShare(FrozenRecord):
    """What a step took of one source of a mixture."""

    windows: Whole
    """Its windows in the step; 0 where its turn did not come."""
    tokens: Whole
    """Their tokens."""
    epoch: Whole
    """Epoch of its next window at the step's start."""


class LedgerRecord(FrozenRecord):
    """One attempt at a step."""

    step: Whole
    """The step, from 0."""
    first_index: Whole
    """Its first global index."""
    windows: Annotated[int, Field(gt=0, strict=True)]
    """Its number of consecutive global indices."""
    tokens: Whole
    """Tokens of its windows."""
    epoch: Whole
    """Epoch of the first index, within its source."""
    applied: bool
    """Whether the optimizer applied the step."""
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """Sum of the windows' digests, in hexadecimal."""
    sources: dict[str, SourceShare] | None = None
    """What was taken of each source by name, in a mixture; of one store the record says all itself."""


class Ledger(JsonLines[LedgerRecord]):
    """The ledger of a run: `ledger.jsonl`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, TypeAdapter(LedgerRecord))

    def end(self) -> int:
        """The step after the last record's, 0 where there is none."""
        return max((record.step + 1 for record in self.records()), default=0)
