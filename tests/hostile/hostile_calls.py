"""Calls the command line within this process, and holds it to its word on bad input."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NamedTuple

from reptrain.cli import common

LONGEST_MESSAGE = 520
# Measured: at most 0.4 s; a slow machine may take some times that.
LONGEST_CPU_S = 2.0
_USAGE = "Usage: "


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class TooSlow(BaseException):
    """No `except Exception` swallows it."""


def call(*words: object, cpu_s: float = LONGEST_CPU_S) -> Ended:
    """Run a command; what it raises but for an exit is a bug, and comes through.

    Args:
        words: The command and its arguments.
        cpu_s: Processor time after which it is ended; time spent waiting for other processes is none.
    """
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["reptrain", *map(str, words)]
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _limit(cpu_s):
            common.main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    return Ended(int(code or 0), out.getvalue(), err.getvalue())  # type: ignore[call-overload]


def refused(*words: object, cpu_s: float = LONGEST_CPU_S) -> str:
    """Run a command that must refuse its input; returns the message."""
    ended = call(*words, cpu_s=cpu_s)
    assert ended.code == 2, f"{words} ended with {ended.code}: {ended.out[:500]}"
    check(ended)
    return ended.err.rstrip("\n").split("\n")[-1]


def check(ended: Ended) -> None:
    """One error of one line where the input was refused."""
    assert ended.code in (0, 1, 2, 4), ended
    if ended.code != 2 or ended.err.startswith(_USAGE):
        return
    # Progress may precede it.
    *before, message = ended.err.rstrip("\n").split("\n")
    assert message.startswith("error: ") and "error: " not in before, ended.err[:1000]
    assert message.isprintable(), message[:1000]
    assert len(message) <= LONGEST_MESSAGE, message[:1000]


@contextlib.contextmanager
def _limit(cpu_s: float) -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {cpu_s:g} s of processor time")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
