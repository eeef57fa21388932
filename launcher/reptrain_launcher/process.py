"""One child process: its output, the signals that are passed on to it, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

# What is caught here, and what the child gets in its place: a lost terminal is a wish to stop like any other.
_PASSED_ON = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGHUP: signal.SIGTERM,
}


class Ended(NamedTuple):
    """How a child ended.

    Attributes:
        returncode: Its exit code; -N where signal N killed it, as in `subprocess`.
        signal: The first signal that was passed on to it, or None.
    """

    returncode: int
    signal: int | None


def run_process(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    output: Path | None = None,
    on_poll: Callable[[], None] | None = None,
    targets: Callable[[int], Sequence[int]] | None = None,
    poll_s: float = 0.2,
    grace_s: float = 90.0,
) -> Ended:
    """Run a command to its end, passing on SIGINT, SIGTERM, SIGUSR1 and SIGHUP instead of dying of them.

    The child leads a process group of its own: a key press in a terminal reaches it once, through here.

    Args:
        command: The program and its arguments.
        env: The child's environment; None inherits this one.
        output: A file to which its output and errors are appended; None leaves them on this terminal.
        on_poll: Called about every ``poll_s`` seconds while the child runs.
        targets: From the child's process id to the processes that get the signals; None: the child alone.
        poll_s: Seconds between two looks at the child.
        grace_s: Seconds that the child has to end after the first signal; then its group is killed.

    Raises:
        OSError: If the program cannot be started or the file not opened.
    """
    with _opened(output) as stream, _signals_caught() as caught:
        child = subprocess.Popen(
            command, env=env, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            passed_on, deadline = 0, float("inf")
            while not _ended(child, poll_s):
                for number in caught[passed_on:]:
                    for pid in targets(child.pid) if targets is not None else [child.pid]:
                        _send(pid, _PASSED_ON[number])
                    passed_on += 1
                    deadline = min(deadline, time.monotonic() + grace_s)
                if time.monotonic() > deadline:
                    _kill_group(child)
                if on_poll is not None:
                    on_poll()
        finally:
            if child.poll() is None:
                _kill_group(child)
                child.wait()
    return Ended(child.returncode, caught[0] if caught else None)


def _ended(child: subprocess.Popen[bytes], timeout_s: float) -> bool:
    try:
        child.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        # It ended between the last look and now.
        return


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@contextmanager
def _opened(path: Path | None) -> Iterator[int | None]:
    if path is None:
        yield None
        return
    with path.open("ab") as file:
        yield file.fileno()


@contextmanager
def _signals_caught() -> Iterator[list[signal.Signals]]:
    """Collect signals in a list instead of dying of them. Outside the main thread none can be caught."""
    caught: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(signal.Signals(number))

    # What the caller ignores stays ignored: `nohup` means it.
    numbers = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
