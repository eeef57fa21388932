"""Progress of steps: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 5.0


class StepDisplay:
    """Shows the progress of a training. A context manager, which ends the bar.

    Args:
        stream: Standard output or standard error.
        total: Steps of the training.
        done: Steps completed before.
        label: Precedes the figures, such as the seed if several are trained.
    """

    def __init__(self, stream: TextIO, *, total: int, done: int = 0, label: str = "") -> None:
        self._stream, self._total, self._done, self._label = stream, total, done, label
        self._last_line = float("-inf")
        self._first, self._began = done, time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        console = Console(file=self._stream)
        if console.is_terminal and not console.is_dumb_terminal:
            # Lines printed during the training appear above the bar.
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.percentage:>3.0f} %", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                # A stream that is redirected to a file stays there.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self._text(self._done, ""), total=self._total, completed=self._done
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, done: int, figures: str, more: str = "") -> None:
        """Show the number of completed steps and the figures of the last one.

        Args:
            done: Completed steps.
            figures: Figures of the last step, such as its loss.
            more: Further figures, which only a line has room for, not the bar.
        """
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=self._text(done, figures))
            return
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES and done < self._total:
            return
        self._last_line = now
        self._stream.write(self._text(done, figures + more + self._time_left(done, now)) + "\n")
        self._stream.flush()

    def _time_left(self, done: int, now: float) -> str:
        """The time until the last step at the mean speed since the start; empty at the end."""
        if done <= self._first or done >= self._total:
            return ""
        seconds = (now - self._began) / (done - self._first) * (self._total - done)
        return f"  left {timedelta(seconds=round(seconds))}"

    def _text(self, done: int, figures: str) -> str:
        parts = [self._label, f"step {done}/{self._total}", figures]
        return "  ".join(part for part in parts if part)
