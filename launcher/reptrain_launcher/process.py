"""One child process: its output, the signals that are passed on to it, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        returncode: Its exit code; -N where signal N killed it, as in `subprocess`.
        signal: The signal that this process got meanwhile and passed on, or None.
    """

    returncode: int
    signal: int | None


@dataclass
class _Received:
    signals: list[int] = field(default_factory=list)


def run_process(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    output: Path | None = None,
    on_poll: Callable[[], None] | None = None,
    poll_s: float = 0.2,
    grace_s: float = 60.0,
) -> Ended:
    """Run a command to its end, passing SIGINT, SIGTERM and SIGHUP on to its whole process group.

    The child leads a group of its own, so that a key press in a terminal reaches it once, through here.

    Args:
        command: The program and its arguments.
        env: The child's environment; None inherits this one.
        output: A file to which its output and errors are appended; None leaves them on this terminal.
        on_poll: Called about every ``poll_s`` seconds while the child runs, and once after its end.
        poll_s: Seconds between two looks at the child.
        grace_s: Seconds that the child gets to end after the first signal; then its group is killed.

    Raises:
        OSError: If the program cannot be started or the file not opened.
    """
    with _output(output) as stream, _signals_held() as received:
        child = subprocess.Popen(
            command, env=env, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            _watch(child, received, on_poll=on_poll, poll_s=poll_s, grace_s=grace_s)
        finally:
            if child.poll() is None:
                _signal_group(child, signal.SIGKILL)
                child.wait()
    if on_poll is not None:
        on_poll()
    return Ended(child.returncode, received.signals[0] if received.signals else None)


def _watch(
    child: subprocess.Popen[bytes],
    received: _Received,
    *,
    on_poll: Callable[[], None] | None,
    poll_s: float,
    grace_s: float,
) -> None:
    passed_on, deadline = 0, float("inf")
    while True:
        try:
            child.wait(timeout=poll_s)
            return
        except subprocess.TimeoutExpired:
            pass
        for number in received.signals[passed_on:]:
            _signal_group(child, number)
            passed_on += 1
            deadline = min(deadline, time.monotonic() + grace_s)
        if time.monotonic() > deadline:
            _signal_group(child, signal.SIGKILL)
        if on_poll is not None:
            on_poll()


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        # It ended between the last look and now.
        return


@contextmanager
def _output(path: Path | None) -> Iterator[int | None]:
    if path is None:
        yield None
        return
    with path.open("ab") as file:
        yield file.fileno()


@contextmanager
def _signals_held() -> Iterator[_Received]:
    """Collect the signals of `_PASSED_ON` instead of dying of them; outside the main thread, none."""
    received = _Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def hold(number: int, frame: FrameType | None) -> None:
        received.signals.append(number)

    # What the caller ignores stays ignored: `nohup` means it.
    caught = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, hold) for number in caught}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
