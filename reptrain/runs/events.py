"""What happened to a run from outside: starts, resumes, damage that was found, stops. Never cut back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from reptrain.runs.ledger import Whole
from reptrain.runs.records import FrozenRecord, JsonLines


class EventRecord(FrozenRecord):
    """One thing that happened."""

    event: Literal["started", "resumed", "damaged", "skipped", "spike", "preempted", "failed", "done"]
    """What it was. damaged: a checkpoint was passed over, or records were
    restored; skipped: a step was not applied; spike: its
    loss or gradient norm was far above its history."""
    step: Whole
    """Steps completed then."""
    detail: str
    """In words."""
    time: str
    """When, in UTC."""


class Events(JsonLines[EventRecord]):
    """The events of a run: `events.jsonl`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, TypeAdapter(EventRecord))
