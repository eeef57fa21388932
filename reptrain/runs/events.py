"""Events of a run: starts, resumes, damage, stops. This file is never truncated."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from reptrain.runs.ledger import Whole
from reptrain.runs.records import FrozenRecord, JsonLines


class EventRecord(FrozenRecord):
    """One event."""

    event: Literal[
        "started",
        "branched",
        "resumed",
        "damaged",
        "skipped",
        "spike",
        "straggler",
        "mirror",
        "preempted",
        "failed",
        "done",
    ]
    """Kind of event. branched: the run took over the first steps of another; damaged: a checkpoint was
    skipped, or records were restored; skipped: a step was not applied; spike: the loss or gradient norm was
    far above its recent values; straggler: a rank slows down the others; mirror: the
    copy of the run folder could not be updated."""
    step: Whole
    """Steps completed."""
    detail: str
    """Description."""
    time: str
    """Time in UTC."""


class Events(JsonLines[EventRecord]):
    """The events of a run: `events.jsonl`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, TypeAdapter(EventRecord))
