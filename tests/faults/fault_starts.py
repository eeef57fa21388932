"""Starts reptrain's commands as processes that a test may kill.

They are forked from a server that has imported what they need: a start costs a second instead of ten, and
the moments at which a run can be killed are those of the run, not those of its imports.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

_LIMIT_S = 600
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["fault_imports"])

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
        anew: Start an interpreter, as a shell does, instead of a fork; there is no hook then.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        hook: Hook | None = None,
        anew: bool = False,
    ) -> None:
        self.log = log
        self._begin = log.stat().st_size if log.exists() else 0
        words = [str(argument) for argument in arguments]
        self.process: BaseProcess | _Interpreter
        _STARTED.append(self)
        if anew:
            self.process = _Interpreter(words, log, environment or {})
            return
        _start_server()
        self.process = _CONTEXT.Process(target=_carry_out, args=(words, log, environment or {}, hook))
        self.process.start()

    def kill(self) -> None:
        """End it as a lack of memory does."""
        self.process.kill()

    def stop(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        # It may end in between, and its number goes with it.
        with suppress(ProcessLookupError):
            if self.process.is_alive() and self.process.pid is not None:
                os.kill(self.process.pid, number)

    def wait(self, limit_s: float = _LIMIT_S) -> Ended:
        """Wait for its end."""
        self.process.join(limit_s)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"did not end within {limit_s:g} s\n{self.said()}")
        return Ended(self.process.exitcode, self.said())

    def said(self) -> str:
        """What it wrote until now."""
        if not self.log.exists():
            return ""
        return self.log.read_bytes()[self._begin :].decode(errors="replace")


def end_all() -> None:
    """Kill what still runs, or stands still: pytest would wait for it at its end."""
    while _STARTED:
        process = _STARTED.pop().process
        process.kill()
        process.join()


class _Interpreter:
    """A process of its own, under the names that `multiprocessing` gives."""

    def __init__(self, words: list[str], log: Path, environment: Mapping[str, str]) -> None:
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **environment}
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "reptrain", *words], stdout=file, stderr=file, env=variables
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    def join(self, timeout: float | None = None) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)


def _start_server() -> None:
    """Start the server, or see that it runs. What it imports lies beside this file."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _carry_out(arguments: list[str], log: Path, environment: Mapping[str, str], hook: Hook | None) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(handle, standard)
    os.environ.update(environment)
    sys.argv = ["reptrain", *arguments]
    from reptrain.cli import main

    try:
        if hook is not None:
            hook()
        main()
    finally:
        # A forked process leaves these out by itself, and training tidies up in one of them.
        atexit._run_exitfuncs()
