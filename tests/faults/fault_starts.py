"""Starts reptrain's commands as processes that a test may kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from forked import Forked

_LIMIT_S = 600

Hook = Callable[[], None]
_STARTED: list[Started] = []


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    """Its exit code; minus a signal's number."""
    said: str
    """What it wrote."""

    @property
    def refused(self) -> bool:
        """Whether it ended as a user's error does: exit code 2, one message, no traceback."""
        return self.code == 2 and self.said.count("error: ") == 1 and "Traceback" not in self.said

    @property
    def error(self) -> str:
        """Its message."""
        return self.said.partition("error: ")[2].strip()


class Started:
    """A command that runs.

    Args:
        arguments: As on the command line, without `reptrain`.
        log: Where it writes; what stands there is kept.
        environment: Variables of it alone.
        hook: Called in the process before the command: it plants the fault.
        new_interpreter: Start an interpreter, as a shell does, instead of a fork; there is no hook then.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        hook: Hook | None = None,
        new_interpreter: bool = False,
    ) -> None:
        self.log = log
        self._begin = log.stat().st_size if log.exists() else 0
        words = ["-m", "reptrain", *map(str, arguments)]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **(environment or {})}
        self.process: Forked | subprocess.Popen[bytes]
        with log.open("ab") as file:
            if new_interpreter:
                command = [sys.executable, *words]
                self.process = subprocess.Popen(command, stdout=file, stderr=file, env=variables)
            else:
                self.process = Forked(words, stdout=file, stderr=file, environment=variables, hook=hook)
        _STARTED.append(self)

    def kill(self) -> None:
        """End it as a lack of memory does."""
        self.process.kill()

    def stop(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        # It may end in between.
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    @property
    def runs(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def wait_up_to(self, seconds: float) -> None:
        """Wait for its end, or so long."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def wait(self, limit_s: float = _LIMIT_S) -> Ended:
        """Wait for its end."""
        self.wait_up_to(limit_s)
        code = self.process.poll()
        if code is None:
            self.kill()
            self.process.wait()
            raise AssertionError(f"did not end within {limit_s:g} s\n{self.said()}")
        return Ended(code, self.said())

    def said(self) -> str:
        """What it wrote until now."""
        if not self.log.exists():
            return ""
        return self.log.read_bytes()[self._begin :].decode(errors="replace")


def end_all() -> None:
    """Kill what still runs, or stands still."""
    while _STARTED:
        process = _STARTED.pop().process
        process.kill()
        process.wait()
