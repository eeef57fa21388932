"""Run independent jobs in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for_futures
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, ClassVar, Self, TypeVar

from reptrain.errors import StoreError

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Workers:
    """Runs independent jobs. The processes start when they are first needed and serve all stages.

    A context manager: leaving it ends the processes.

    Args:
        processes: Number of processes. This process is one of them: it runs jobs while the others start.
    """

    remote: ClassVar[bool] = False
    """Whether the jobs run on other machines, which read only what is flushed, and flush what they write."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self, function: Callable[[Argument], Result], arguments: Sequence[Argument]
    ) -> Iterator[tuple[Argument, Result]]:
        """Call ``function`` on each argument, in any order, and yield each result as it completes.

        Args:
            function: A module-level function, so that it can be pickled.
            arguments: One for each job.

        Raises:
            StoreError: If a worker was killed. Exceptions of ``function`` are passed on.
        """
        if min(self._processes, len(arguments)) <= 1:
            yield from ((argument, function(argument)) for argument in arguments)
            return
        left, running = deque(arguments), dict[Future[Result], Argument]()
        pool = self._start()
        try:
            while left or running:
                # One job runs in each process, and one waits, so that no process waits for this one.
                while left and len(running) < 2 * (self._processes - 1):
                    argument = left.popleft()
                    running[pool.submit(function, argument)] = argument
                if left:
                    argument = left.popleft()
                    yield argument, function(argument)
                else:
                    wait_for_futures(running, return_when=FIRST_COMPLETED)
                for future in [future for future in running if future.done()]:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise StoreError(
                "processes",
                got=f"one of {self._processes} ended",
                rule="must all run until the work is done",
                remedy="Check for a lack of memory; the same command resumes.",
            ) from error

    def start(self) -> None:
        """Start the processes, so that they are ready when they are needed."""
        if self._processes > 1:
            self._start().submit(os.getpid)

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Spawned, not forked: the caller may hold threads and locks.
            self._pool = ProcessPoolExecutor(self._processes - 1, _Context(), initializer=_start_worker)
        return self._pool


class _Process(SpawnProcess):
    """A spawned process that does not run the caller's `__main__` again.

    Spawning imports that module in the child, so that functions defined in it can be called. Workers only
    call functions of reptrain, while a script without `if __name__ == "__main__"` would run again in each
    worker, and a script from standard input cannot be imported.
    """

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = main


class _Context(SpawnContext):
    Process = _Process


def _start_worker() -> None:
    """End with the parent: if it is killed, a worker would wait for its next job forever."""
    # Ctrl-C reaches every process of the terminal; only the parent reports it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()
    # What all jobs need, imported before the first of them comes.
    import_module("reptrain.tokenization.encode")


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
