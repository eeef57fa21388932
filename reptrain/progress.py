"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from reptrain.stages import StageProgress

_SECONDS_BETWEEN_LINES = 10.0

ShowProgress = Callable[[str, float, float, str], None]
"""Called with a stage, the units that are done, their total, and a rate as text."""


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rate]:>18}", markup=False),
        TimeRemainingColumn(),
        console=console,
        transient=False,
    )


class _Lines:
    """Prints a line when a stage begins or ends, and every few seconds in between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""
        self._last = 0.0

    def show(self, stage: str, done: float, total: float, rate: str) -> None:
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._last < _SECONDS_BETWEEN_LINES:
            return
        if stage == self._stage and done >= total and self._last == float("inf"):
            return
        self._stage, self._last = stage, float("inf") if done >= total else now
        share = f"{done / total:.0%}" if total else ""
        self._console.print(
            f"{stage}  {share}  {rate}".rstrip(), highlight=False, markup=False, soft_wrap=True
        )


class _Bars:
    """One bar per stage; finished bars stay."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def show(self, stage: str, done: float, total: float, rate: str) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, rate="")
        self._progress.update(self._tasks[stage], completed=done, total=total, rate=rate)


@contextmanager
def progress_display() -> Iterator[ShowProgress]:
    """A function of (stage, done, total, rate): a bar on a terminal, a line every few seconds elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console).show
        return
    with _bar(console) as progress:
        yield _Bars(progress).show


@contextmanager
def stage_progress() -> Iterator[StageProgress]:
    """A function of (stage, done, total) that shows the progress of a long job."""
    with progress_display() as show:
        yield lambda stage, done, total: show(stage, done, total, "")
