"""Checkpoints of a training: when to save one, and what it contains."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from reptrain import checkpoint
from reptrain.checkpoint import Background, HostCopy
from reptrain.checkpoint.weight_average import saved_pieces
from reptrain.distributed.host_memory import available_bytes
from reptrain.errors import ConfigError
from reptrain.runs.ledger import Ledger, LedgerEvent
from reptrain.runs.records import JsonLines
from reptrain.training.recorder import print_line
from reptrain.training.step import Trainer

_SMALL_BYTES = 1 << 28


@dataclass
class Checkpoints:
    """Saves the checkpoints of a training. As a context manager it ends an unfinished save at an error."""

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
    copy: HostCopy | None = None
    """Where the state is copied, so that training continues while it is written; None: training waits."""
    pulse: Callable[[], None] = lambda: None
    """Called on progress while training waits for a save in the background."""
    say: Callable[[str], None] = lambda text: print_line(text)
    """Prints a line on the main rank."""
    _unfinished: Generator[None, None, None] | None = field(default=None, init=False)
    _background: Background | None = field(default=None, init=False)
    _has_waited: bool = field(default=False, init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End a save that is not finished. The checkpoint before it stays the newest."""
        if self._background is not None:
            self._background.abandon()
        if self._unfinished is not None:
            self._unfinished.close()
            self._unfinished = None
        if self.ledger is not None:
            self.ledger.release()

    def save(self, step: int, *, keep: Set[int] = frozenset(), wait: bool = True) -> None:
        """Save a checkpoint after ``step`` completed steps; every rank calls this function.

        Args:
            step: Completed steps.
            keep: More steps whose checkpoints stay this time.
            wait: Whether to return only when it is complete. The last of `steps` is always awaited.

        Raises:
            ReptrainError: If the disk is full, or the training data has changed; earlier checkpoints are
                untouched.
        """
        self._wait_before(step)
        self.check()
        if self.trainer.world.is_main:
            for log in self.logs:
                log.sync()
        copy = None if wait or step == max(self.steps) else self.copy
        self._background = Background(self.trainer.world, threaded=True, pulse=self.pulse)
        self._unfinished = self._save(step, self.keep | keep, self._background, copy)
        self.continue_save()

    def continue_save(self) -> None:
        """Continue a save in the background, if there is one. Every rank calls it after each step.

        Raises:
            ReptrainError: If the disk is full; earlier checkpoints are untouched.
        """
        if self._unfinished is not None and next(self._unfinished, "finished") is not None:
            self._unfinished = None

    def finish(self) -> None:
        """Wait until the save in the background is complete, if there is one. Every rank calls it.

        Raises:
            ReptrainError: See `continue_save`.
        """
        while self._unfinished is not None and self._background is not None:
            self._background.is_awaited = True
            self.continue_save()

    def _wait_before(self, step: int) -> None:
        """Finish the save before that of a step; the first time it has to wait, say so."""
        self.continue_save()
        if self._unfinished is not None and self.trainer.world.is_main and not self._has_waited:
            self._has_waited = True
            self.say(f"step {step}: training waits until the checkpoint before this one is written")
        self.finish()

    def _save(
        self, step: int, keep: Set[int], background: Background, copy: HostCopy | None
    ) -> Generator[None, None, None]:
        is_main, began = self.trainer.world.is_main, time.perf_counter()
        sizes = {log.path: log.size() for log in self.logs} if is_main else {}
        if self.ledger is not None and is_main:
            self.ledger.hold()
        arguments: dict[str, Any] = {
            "world": self.trainer.world,
            "keep_last": self.keep_last,
            "keep": keep,
            "average": self.trainer.average,
            "complete_records": partial(self._complete_records, step, sizes),
        }
        if copy is None:
            checkpoint.save(self.trainer.engine, self.folder, step, **arguments)
        else:
            arguments |= {"background": background, "copy": copy}
            yield from checkpoint.save_in_parts(self.trainer.engine, self.folder, step, **arguments)
        if is_main:
            if copy is not None:
                seconds = time.perf_counter() - began
                self.say(f"checkpoint of step {step} written in the background in {seconds:.1f} s")
            self.saved(step)

    def _complete_records(self, step: int, sizes: Mapping[Path, int], state: str) -> Mapping[Path, int]:
        """Record the state hash; returns the sizes of the logs that belong to the checkpoint."""
        if self.ledger is None:
            return sizes
        size = self.ledger.release(LedgerEvent(event="checkpoint", step=step, state=state))
        return {**sizes, self.ledger.path: size}


def reserve_copy(
    wanted: bool | Literal["auto"],
    trainer: Trainer,
    steps: Set[int],
    *,
    done: int,
    say: Callable[[str], None] = lambda text: print_line(text),
) -> HostCopy | None:
    """Memory for saving in the background, on every rank or on none; the main rank prints how much.

    Args:
        wanted: `checkpoint.background`.
        trainer: The model under DeepSpeed.
        steps: Numbers of completed steps at which checkpoints are saved.
        done: Completed steps.
        say: Prints a line on the main rank.

    Raises:
        ConfigError: If it is wanted and a host has too little memory.
    """
    world = trainer.world
    if not wanted or not any(done < step < max(steps) for step in steps):
        return None
    held = saved_pieces(trainer.engine, trainer.average, world)
    own = checkpoint.state_bytes(held)
    of_ranks = world.gather((socket.gethostname(), own, available_bytes()))
    largest = max(size for _, size, _ in of_ranks)
    needed = {host: sum(size for other, size, _ in of_ranks if other == host) for host, _, _ in of_ranks}
    _, host, free = min((free - needed[host], host, free) for host, _, free in of_ranks)
    if wanted == "auto":
        # The activations are not allocated yet.
        has_room = all(2 * needed[host] <= free for host, _, free in of_ranks)
        if largest < _SMALL_BYTES or not has_room:
            return None
    elif free < needed[host]:
        raise ConfigError(
            "checkpoint.background",
            got=f"true, where {host} has {free / 1e9:.3g} GB of memory available",
            rule=f"needs {needed[host] / 1e9:.3g} GB for copies of the states of the ranks on a host",
            remedy="Set checkpoint.background=false, or use more hosts.",
        )
    if world.is_main:
        say(
            f"checkpoints are written in the background: {largest / 1e9:.3g} GB of memory on each rank for a"
            " copy of its state"
        )
    return HostCopy(held, world.device)
