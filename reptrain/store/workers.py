"""Run independent jobs in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from reptrain.errors import StoreError

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def run_all(
    function: Callable[[Argument], Result], arguments: Sequence[Argument], *, processes: int
) -> Iterator[tuple[Argument, Result]]:
    """Call ``function`` on each argument, in any order, and yield each pair as it is done.

    Args:
        function: A module's function, so that it can be sent to another process.
        arguments: One for each job.
        processes: 1 works in this process.

    Raises:
        StoreError: If a worker was killed. What ``function`` raises is raised here.
    """
    processes = min(processes, len(arguments))
    if processes <= 1:
        yield from ((argument, function(argument)) for argument in arguments)
        return
    # Spawned, not forked: the caller may hold threads and locks.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)
    try:
        futures = {pool.submit(function, argument): argument for argument in arguments}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    except BrokenProcessPool as error:
        raise StoreError(
            "processes",
            got=f"one of {processes} ended",
            rule="must all live until the work is done",
            remedy="Look for a lack of memory; the same command goes on where it stopped.",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """End with the parent: when it is killed, a worker would wait for its next job for ever."""
    # Ctrl-C reaches every process of the terminal; the parent says what there is to say.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
