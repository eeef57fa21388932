"""Checkpoints of a training: when to save one, and what it contains."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reptrain import checkpoint
from reptrain.runs.ledger import Ledger, LedgerEvent
from reptrain.runs.records import JsonLines
from reptrain.training.step import Trainer


@dataclass(frozen=True)
class Checkpoints:
    """Saves the checkpoints of a training."""

    trainer: Trainer
    folder: Path
    """Folder of the checkpoints."""
    logs: Sequence[JsonLines[Any]]
    """Records of the training; a checkpoint contains a copy of each."""
    steps: Set[int]
    """Numbers of completed steps at which to save."""
    keep_last: int
    """Number of newest checkpoints to keep."""
    keep: Set[int] = frozenset()
    """Steps whose checkpoints are always kept."""
    check: Callable[[], None] = lambda: None
    """Called on every rank before a checkpoint is saved; raises if the training data has changed."""
    saved: Callable[[int], None] = lambda step: None
    """Called on the main rank after a checkpoint is complete, with its step."""
    ledger: Ledger | None = None
    """The one of the logs that records each checkpoint's state hash."""

    def save(self, step: int, *, keep: Set[int] = frozenset()) -> None:
        """Save a checkpoint after ``step`` completed steps; every rank calls this function.

        Args:
            step: Completed steps.
            keep: More steps whose checkpoints stay this time.

        Raises:
            ReptrainError: If the disk is full, or the training data has changed; earlier checkpoints are
                untouched.
        """
        self.check()
        if self.trainer.world.is_main:
            for log in self.logs:
                log.sync()
        checkpoint.save(
            self.trainer.engine,
            self.folder,
            step,
            world=self.trainer.world,
            records=[log.path for log in self.logs],
            keep_last=self.keep_last,
            keep=self.keep | keep,
            average=self.trainer.average,
            note_state=partial(self._note_state, step),
        )
        if self.trainer.world.is_main:
            self.saved(step)

    def _note_state(self, step: int, state: str) -> None:
        if self.ledger is not None:
            self.ledger.append(LedgerEvent(event="checkpoint", step=step, state=state))
            self.ledger.sync()
