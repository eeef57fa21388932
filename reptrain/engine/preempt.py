"""Stopping between two steps when the system or a person asks for it."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether a signal asked this process to stop. A second signal acts as it would without us."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch SIGINT, SIGTERM and SIGUSR1 (the warning that Slurm can send before its time limit)."""
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in _ASKING}

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        _restore(before)

    for number in _ASKING:
        signal.signal(number, note)
    try:
        yield request
    finally:
        _restore(before)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
