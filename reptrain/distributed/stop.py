"""Stopping between two steps when the system, a person or the clock asks for it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from reptrain.distributed.world import World

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Above every signal's number.
_TIME_IS_UP = 1 << 16


def seconds_since_start() -> float:
    """Seconds since this process started, by a clock that nobody sets."""
    try:
        # pid (name) state parent ...; the name may hold anything, brackets too. Field 22 is the start.
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError, IndexError):
        return time.monotonic() - _IMPORTED


_IMPORTED = time.monotonic()


class StopRequest:
    """Whether this process was asked to stop, by a signal or by the time it may take.

    SIGTERM and SIGUSR1 (the warning that Slurm can send before its limit) may come as often as they like: a
    checkpoint that is being written is finished. A second Ctrl-C ends the process at once.

    Args:
        max_minutes: Minutes from the start of this process; None sets no limit.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.max_minutes = max_minutes
        self._signal = 0
        self._before: dict[signal.Signals, Any] = {}

    def catch(self) -> None:
        """Note signals from now on. Outside the main thread none can be caught."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _ASKING}

    def let_go(self) -> None:
        """Put the former handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def ignore(self) -> None:
        """Ignore signals until the process has ended: Python puts their defaults back shortly before that."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before.get(signal.SIGINT, signal.default_int_handler))
            os.write(2, b"stopping at the next step with a checkpoint; Ctrl-C again ends at once\n")
        self._signal = self._signal or number

    def reason(self, world: World) -> str | None:
        """Why to stop now, the same on every rank; None to go on. Every rank calls this."""
        late = self.max_minutes is not None and seconds_since_start() >= 60 * self.max_minutes
        # Some rank's signal, or else the time.
        asked = world.max(self._signal or (_TIME_IS_UP if late else 0))
        if asked == _TIME_IS_UP:
            return f"the {self.max_minutes:g} minutes of --max-minutes are over"
        return signal.Signals(asked).name if asked else None


@contextmanager
def stop_requests(max_minutes: float | None = None) -> Iterator[StopRequest]:
    """A `StopRequest` for a stretch of a program."""
    request = StopRequest(max_minutes)
    request.catch()
    try:
        yield request
    finally:
        request.let_go()
