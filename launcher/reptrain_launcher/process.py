"""Child processes: their output, forwarded signals, and exit codes."""

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

# Signals that are caught, and the signals that a child gets: a lost terminal counts as a request to stop.
FORWARDED = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGHUP: signal.SIGTERM,
}


class Ended(NamedTuple):
    """How a child process ended.

    Attributes:
        returncode: Exit code; -N if signal N killed it, as in `subprocess`.
        signal: The first signal that was forwarded to it, or None.
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
    """Run a command until it ends, and forward SIGINT, SIGTERM, SIGUSR1 and SIGHUP to it.

    The child has its own process group: Ctrl-C in a terminal reaches it once, through this process.

    Args:
        command: The program and its arguments.
        env: Environment of the child; None: that of this process.
        output: File to append stdout and stderr to; None: those of this process.
        on_poll: Called about every ``poll_s`` seconds while the child runs.
        targets: Maps the child's process id to the processes that get the signals; None: the child only.
        poll_s: Seconds between polls.
        grace_s: Seconds from the first signal until the child's process group is killed.

    Raises:
        OSError: If the program cannot be started or the file cannot be opened.
    """
    with signals_caught() as caught:
        child = start_process(command, env=env, output=output)
        try:
            num_forwarded, deadline = 0, float("inf")
            while not _ended(child, poll_s):
                for number in caught[num_forwarded:]:
                    for pid in targets(child.pid) if targets is not None else [child.pid]:
                        send_signal(pid, FORWARDED[number])
                    num_forwarded += 1
                    deadline = min(deadline, time.monotonic() + grace_s)
                if time.monotonic() > deadline:
                    kill_group(child)
                if on_poll is not None:
                    on_poll()
        finally:
            if child.poll() is None:
                kill_group(child)
                child.wait()
    return Ended(child.returncode, caught[0] if caught else None)


def start_process(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, output: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own, without input.

    Args:
        command: The program and its arguments.
        env: Its environment; None: that of this process.
        output: File to append stdout and stderr to; None: those of this process.

    Raises:
        OSError: If the program cannot be started or the file cannot be opened.
    """
    with _opened(output) as stream:
        return subprocess.Popen(
            command, env=env, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True
        )


def _ended(child: subprocess.Popen[bytes], timeout_s: float) -> bool:
    try:
        child.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def send_signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process, which may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        # It ended since the last poll.
        return


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """Kill a child from `start_process` with all processes of its group."""
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
def signals_caught() -> Iterator[list[signal.Signals]]:
    """Collect signals in a list within the context. Outside the main thread Python cannot catch signals."""
    caught: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(signal.Signals(number))

    # Ignored signals stay ignored, as `nohup` intends.
    numbers = [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
