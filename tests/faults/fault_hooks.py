"""Faults that are planted in the process itself, where the moment must be exact."""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from reptrain.runs.records import JsonLines

_PAGE_BYTES = 1 << 12
_CLONE_NEWNET = 0x40000000
# What makes a change last, or visible under its name.
_ACTIONS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")

Within = tuple[str, str]
"""Module and function."""
SAVE: Within = ("reptrain.checkpoint", "save")
SEAL: Within = ("reptrain.tokenization.build", "write_manifest")


class Actions:
    """Counts the actions that change what is on the disk, and strikes before one of them.

    Args:
        strike_at: Before which one the process kills itself, from 0; None: it ends as it would.
        within: Only actions within one call of this function count; None: all.
        call: Which call of it, from 0.
        count_to: Where the number of actions is written when the process ends by itself.
    """

    def __init__(
        self,
        strike_at: int | None = None,
        *,
        within: Within | None = None,
        call: int = 0,
        count_to: Path | None = None,
    ) -> None:
        self._strike_at, self._within, self._count_to = strike_at, within, count_to
        self._calls_before = call
        self._seen, self._inside = 0, within is None

    def __call__(self) -> None:
        make_small_jobs()
        for name in _ACTIONS:
            setattr(os, name, self._counted(getattr(os, name)))
        if self._within is not None:
            module, name = importlib.import_module(self._within[0]), self._within[1]
            setattr(module, name, self._entered(getattr(module, name)))
        if self._count_to is not None:
            atexit.register(self._tell)

    def _entered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def entered(*args: Any, **kwargs: Any) -> Any:
            self._inside = self._calls_before == 0
            self._calls_before -= 1
            try:
                return function(*args, **kwargs)
            finally:
                self._inside = False

        return entered

    def _counted(self, action: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                if self._seen == self._strike_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                self._seen += 1
            return action(*args, **kwargs)

        return counted

    def _tell(self) -> None:
        assert self._count_to is not None
        self._count_to.write_text(str(self._seen))


def make_small_jobs() -> None:
    """Let a small corpus make several shards."""
    importlib.import_module("reptrain.tokenization.jobs")._SMALLEST_JOB_BYTES = 20_000


def fill(filler: Path) -> None:
    """Fill a disk to the last byte.

    Args:
        filler: The file that takes the room.
    """
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while file.write(b"\0" * _PAGE_BYTES):
            pass


class FillAtCall:
    """Fills a disk when a function is called.

    Args:
        filler: The file that takes the room.
        function: Which.
        call: Which call of it, from 0.
    """

    def __init__(self, filler: Path, function: Within, call: int = 0) -> None:
        self._filler, self._function, self._calls_before = filler, function, call

    def __call__(self) -> None:
        make_small_jobs()
        module, name = importlib.import_module(self._function[0]), self._function[1]
        function = getattr(module, name)

        def filling(*args: Any, **kwargs: Any) -> Any:
            if self._calls_before == 0:
                fill(self._filler)
            self._calls_before -= 1
            return function(*args, **kwargs)

        setattr(module, name, filling)


class FillAtLine:
    """Fills a disk when a log gets a line that needs room: the page at its end has no more for it.

    Args:
        filler: The file that takes the room.
        log: The log's file name.
    """

    def __init__(self, filler: Path, log: str) -> None:
        self._filler, self._log = filler, log

    def __call__(self) -> None:
        write = JsonLines.write

        def filling(log: JsonLines[Any], line: bytes) -> None:
            if log.path.name == self._log:
                size = log.path.stat().st_size if log.path.exists() else 0
                if size % _PAGE_BYTES + len(line) > _PAGE_BYTES:
                    fill(self._filler)
            write(log, line)

        setattr(JsonLines, "write", filling)  # noqa: B010 - mypy refuses the plain way


class ClockBack:
    """Lets each reading of the wall clock lie an hour before the last one."""

    def __init__(self) -> None:
        self._now = time.time()

    def __call__(self) -> None:
        time.time = self._read

    def _read(self) -> float:
        self._now -= 3600
        return self._now


class EnterNetwork:
    """Moves the process to another network namespace, as `ip netns exec` does.

    Args:
        name: Of the namespace.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/run/netns", self._name).open() as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
