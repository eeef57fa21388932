"""Resuming from a checkpoint, the same in pre-training and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from reptrain import checkpoint
from reptrain.checkpoint import FoundCheckpoint, Topology
from reptrain.runs.events import EventRecord, Events
from reptrain.runs.records import JsonLines
from reptrain.training.step import Trainer


def note_event(events: Events, event: str, detail: str, step: int) -> None:
    """Append an event.

    Args:
        events: `events.jsonl`.
        event: Its kind, as in `EventRecord`.
        detail: In words.
        step: Completed steps.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    events.append(EventRecord.model_validate({"event": event, "step": step, "detail": detail, "time": now}))


class Resumed(NamedTuple):
    """Where a training resumes."""

    step: int
    """Completed steps; 0 without a checkpoint."""
    skipped: list[str]
    """Newer checkpoints that are damaged, each with the reason."""
    state: str | None = None
    """State hash of the loaded checkpoint; None without one."""


def resume(
    trainer: Trainer,
    checkpoints: Path,
    logs: Sequence[JsonLines[Any]],
    *,
    events: Events,
    say: Callable[[str], None],
) -> Resumed:
    """Load the newest undamaged checkpoint and cut the records back to it.

    Args:
        trainer: The model under DeepSpeed; its weights and optimizer state are replaced.
        checkpoints: Folder of the checkpoints.
        logs: Records to cut back; all of them if there is no checkpoint.
        events: Where the start, the resumption and any damage are recorded.
        say: Prints the resumption and any damage, on the main rank.
    """
    world, loaded = trainer.world, None
    newest = checkpoint.find(checkpoints, world=world)
    if newest.path is not None and newest.manifest is not None:
        checkpoint.load(trainer.engine, newest.path, newest.manifest, average=trainer.average)
        loaded = checkpoint.check_loaded(
            trainer.engine, newest.path, newest.manifest, world=world, average=trainer.average
        )
    topology = checkpoint.topology(trainer.engine, world)
    world.on_main(lambda: _cut_back(newest, topology, logs, events, say))
    return Resumed(newest.manifest.step if newest.manifest else 0, newest.damaged, loaded)


def _cut_back(
    newest: FoundCheckpoint,
    topology: Topology,
    logs: Sequence[JsonLines[Any]],
    events: Events,
    say: Callable[[str], None],
) -> None:
    events.drop_half_line()
    step = newest.manifest.step if newest.manifest else 0
    for damage in newest.damaged:
        say(f"WARNING: {damage}: skipped")
        note_event(events, "damaged", damage, step)
    for damage in checkpoint.restore_records(newest, logs):
        say(f"WARNING: {damage}: restored from {newest.path}")
        note_event(events, "damaged", damage, step)
    if newest.manifest is None:
        note_event(events, "started", f"by {topology}", 0)
        return
    writers = newest.manifest.writers
    by = f"by {topology}" if writers == topology else f"by {topology}, written by {writers}"
    say(f"resumed at step {step} from {newest.path} {by}")
    note_event(events, "resumed", by, step)
