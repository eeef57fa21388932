"""Work that all ranks do in a thread while training continues."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from reptrain.distributed.world import World, portable

Result = TypeVar("Result")
Work = Callable[[Callable[[], None]], Result]
"""Takes a function to call now and then, as a sign of progress."""
_POLL_S = 0.2
_LONGEST_END_S = 30.0


class _AbandonedError(Exception):
    pass


class _Task(threading.Thread, Generic[Result]):
    """Work in a thread, with its result or its error."""

    def __init__(self, work: Work[Result], abandoned: threading.Event) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self._work, self._abandoned = work, abandoned
        self.ticks = 0
        self.outcome: Result | Exception = _AbandonedError()

    def run(self) -> None:
        """Do the work."""
        try:
            self.outcome = self._work(self._tick)
        except Exception as error:  # All ranks raise it.
            self.outcome = error

    def _tick(self) -> None:
        self.ticks += 1
        if self._abandoned.is_set():
            raise _AbandonedError


class Background:
    """Does one piece of work at a time on every rank: in a thread, or at once.

    Args:
        world: The ranks.
        threaded: Whether to use a thread.
        pulse: Called while the main thread waits and the work makes progress.
    """

    def __init__(
        self, world: World, *, threaded: bool = False, pulse: Callable[[], None] = lambda: None
    ) -> None:
        self._world, self._threaded, self._pulse = world, threaded, pulse
        self._abandoned = threading.Event()
        self._task: _Task[Any] | None = None
        self.is_awaited = False
        """Whether the main thread waits for the work, the same on every rank."""

    def run(self, work: Work[Result]) -> Generator[None, None, list[Result]]:
        """Start work; yield as long as any rank needs for it. Every rank resumes the generator as often.

        Args:
            work: This rank's work.

        Returns:
            The results of all ranks.

        Raises:
            Exception: The error of the first rank that failed, on every rank.
        """
        task = self._task = _Task(work, self._abandoned)
        if self._threaded:
            task.start()
            while not self._is_done(task):
                yield
        else:
            task.run()
        outcome = task.outcome
        outcomes = self._world.gather(portable(outcome) if isinstance(outcome, Exception) else outcome)
        for one in outcomes:
            if isinstance(one, Exception):
                raise one
        return [one for one in outcomes if not isinstance(one, Exception)]

    def abandon(self) -> None:
        """Let the work of this rank end early, and wait for its end, at most half a minute."""
        self._abandoned.set()
        if self._task is not None and self._task.is_alive():
            self._task.join(_LONGEST_END_S)

    def _is_done(self, task: _Task[Any]) -> bool:
        """Whether all ranks have done their work."""
        ticks = task.ticks
        while self.is_awaited and task.is_alive():
            task.join(_POLL_S)
            if task.ticks != ticks:
                ticks = task.ticks
                self._pulse()
        return self._world.max(int(task.is_alive())) == 0
