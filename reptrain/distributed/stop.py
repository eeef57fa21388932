"""Stop requests: signals and a time limit, checked between steps."""

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

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Larger than any signal number.
_TIME_IS_UP = 1 << 16


def seconds_since_start() -> float:
    """Seconds since this process started, by a monotonic clock."""
    try:
        # pid (name) state parent ...; the name may contain any character, even ")". Field 22: start time.
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError, IndexError):
        return time.monotonic() - _IMPORTED


_IMPORTED = time.monotonic()


class StopRequest:
    """Whether this process was asked to stop, by a signal or by the time limit.

    Repeated SIGTERM and SIGUSR1 (which Slurm can send before its time limit) do not interrupt a checkpoint
    that is being written. A second Ctrl-C ends the process immediately.

    Args:
        max_minutes: Time limit in minutes from the start of this process; None: no limit.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.max_minutes = max_minutes
        self._signal = 0
        self._before: dict[signal.Signals, Any] = {}

    def catch(self) -> None:
        """Install the signal handlers. Does nothing outside the main thread, where Python forbids it."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _STOP_SIGNALS}

    def let_go(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def ignore(self) -> None:
        """Ignore the signals until the process ends, also while Python shuts down."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before.get(signal.SIGINT, signal.default_int_handler))
            os.write(2, b"stopping after this step with a checkpoint; Ctrl-C again quits immediately\n")
        self._signal = self._signal or number

    def reason(self, world: World) -> str | None:
        """The reason to stop now, the same on every rank; None to continue. Every rank calls this method."""
        is_late = self.max_minutes is not None and seconds_since_start() >= 60 * self.max_minutes
        # A rank reports its signal, or else the time limit; all ranks take the largest number.
        request = world.max(self._signal or (_TIME_IS_UP if is_late else 0))
        if request == _TIME_IS_UP:
            return f"the {self.max_minutes:g} minutes of --max-minutes are over"
        return signal.Signals(request).name if request else None


@contextmanager
def stop_requests(max_minutes: float | None = None) -> Iterator[StopRequest]:
    """A `StopRequest` whose handlers are installed within the context."""
    request = StopRequest(max_minutes)
    request.catch()
    try:
        yield request
    finally:
        request.let_go()
