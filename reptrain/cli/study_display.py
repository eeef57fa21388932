"""The progress of a study: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from reptrain.study import StudyEvent

_SECONDS_BETWEEN_LINES = 15.0
_TEXTS = {"skipped": "already done", "start": "started", "waiting": "not started"}


@contextmanager
def study_display() -> Iterator[Callable[[StudyEvent], None]]:
    """A function that shows the events of a study on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console).show
        return
    with Live(console=console, refresh_per_second=4) as live:
        yield _LiveTable(live).show


class _Counts:
    """Counts the nodes by state."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}
        self._total = 0

    def add(self, event: StudyEvent) -> None:
        self._kinds[event.arm], self._total = event.kind, event.num_arms

    def __str__(self) -> str:
        kinds = [*self._kinds.values()]
        done = kinds.count("done") + kinds.count("skipped")
        parts = [f"{done} of {self._total} done", f"{kinds.count('progress') + kinds.count('start')} running"]
        parts += [f"{kinds.count(kind)} {kind}" for kind in ("failed", "blocked", "stopped") if kind in kinds]
        return ", ".join(parts)


class _Lines:
    """Prints a line when a node starts or ends, and the running ones every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console, self._counts = console, _Counts()
        self._last: dict[str, float] = {}

    def show(self, event: StudyEvent) -> None:
        self._counts.add(event)
        now = time.monotonic()
        last = self._last.get(event.arm, float("-inf"))
        if event.kind == "progress" and now - last < _SECONDS_BETWEEN_LINES:
            return
        self._last[event.arm] = now
        line = f"[{event.index + 1}/{event.num_arms}] {event.arm}  {event_text(event)}"
        if event.kind not in ("start", "progress", "skipped"):
            line += f"  ({self._counts})"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class _LiveTable:
    """One row per running node, the counts below, and a line above for each node that has ended."""

    def __init__(self, live: Live) -> None:
        self._live, self._counts = live, _Counts()
        self._running: dict[str, StudyEvent] = {}

    def show(self, event: StudyEvent) -> None:
        self._counts.add(event)
        if event.kind in ("start", "progress"):
            self._running[event.arm] = event
        else:
            self._running.pop(event.arm, None)
            self._live.console.print(f"{event.arm}  {event_text(event)}", highlight=False, markup=False)
        table = Table(box=None, pad_edge=False, caption=str(self._counts), caption_justify="left")
        for name in ("node", "done", "tokens/s", "left"):
            table.add_column(name, justify="left" if name == "node" else "right")
        for running in self._running.values():
            table.add_row(running.arm, _share(running), _speed(running), _left(running))
        self._live.update(table)


def event_text(event: StudyEvent) -> str:
    """An event in words.

    Args:
        event: The event of one node.
    """
    text = _TEXTS.get(event.kind, event.kind)
    if event.kind == "progress":
        text = "  ".join(part for part in (_share(event), _speed(event), _left(event)) if part) or "running"
    elif event.kind == "done":
        text = f"done in {_duration(event.seconds)}"
    return f"{text}: {event.message}" if event.message else text


def _share(event: StudyEvent) -> str:
    return f"{event.tokens / event.total_tokens:.0%}" if event.total_tokens else ""


def _speed(event: StudyEvent) -> str:
    return f"{event.tokens_per_s:,.0f} tokens/s" if event.tokens_per_s else ""


def _left(event: StudyEvent) -> str:
    if not event.tokens_per_s or not event.total_tokens:
        return ""
    return f"{_duration((event.total_tokens - event.tokens) / event.tokens_per_s)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
