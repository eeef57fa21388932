"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from reptrain.stages import StageProgress
from reptrain.study.events import StudyEvent

_SECONDS_BETWEEN_LINES = 10.0


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
    """Says a line when a stage begins or ends, and in between every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""
        self._last = 0.0

    def tell(self, stage: str, done: float, total: float, rate: str = "") -> None:
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
    """One bar for each stage, the finished ones left standing."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def tell(self, stage: str, done: float, total: float, rate: str = "") -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, rate="")
        self._progress.update(self._tasks[stage], completed=done, total=total, rate=rate)


@contextmanager
def _teller() -> Iterator[_Lines | _Bars]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    with _bar(console) as progress:
        yield _Bars(progress)


@contextmanager
def stage_progress() -> Iterator[StageProgress]:
    """A function of (stage, done, total) that shows them."""
    with _teller() as teller:
        yield teller.tell


@contextmanager
def study_progress() -> Iterator[Callable[[StudyEvent], None]]:
    """A function that shows what happens in a study, arm by arm."""
    with _teller() as teller:

        def on_event(event: StudyEvent) -> None:
            stage = f"[{event.index + 1}/{event.num_arms}] {event.arm}"
            rate = {
                "skipped": "already done",
                "failed": "failed",
                "stopped": "stopped",
                "start": "starting",
            }.get(event.kind, "")
            if event.kind in ("progress", "done") and event.tokens_per_s:
                rate = f"{event.tokens_per_s:,.0f} tokens/s"
            if event.message:
                rate = f"{rate}: {event.message}"
            teller.tell(stage, event.tokens, event.total_tokens, rate)

        yield on_event
