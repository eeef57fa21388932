"""Faults that are planted in the process itself, where the moment must be exact."""

from __future__ import annotations

import atexit
import importlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What makes a change last, or visible under its name.
_ACTIONS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")

Within = tuple[str, str]
"""Module and function."""
SAVE: Within = ("reptrain.engine.checkpoint", "save")
SEAL: Within = ("reptrain.store.build", "write_manifest")


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
    importlib.import_module("reptrain.store.jobs")._SMALLEST_JOB_BYTES = 20_000
