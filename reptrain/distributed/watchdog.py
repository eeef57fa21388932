"""Watchdog: ranks monitor each other, so that none waits forever for one that died or hangs.

About once a second a thread of every rank writes a heartbeat to the rendezvous store: that the process is
alive, how far its main thread got, and whether the main thread waits for other ranks. Rank 0 decides:

- a rank without heartbeats is dead or stopped;
- if no main thread makes progress, the ranks that do not wait for others hang;
- a rank that failed reports its error itself.

All ranks read its verdict. If rank 0 falls silent, the other ranks detect it themselves. So it does not
matter how a collective with a dead rank behaves (an error under gloo, an endless wait under NCCL).
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from torch.distributed import DistError, PrefixStore, Store

from reptrain.distributed.world import World
from reptrain.errors import RunError
from reptrain_launcher.rank_environment import shown_rank

_BEAT_S = 1.0
# For large processes: py-spy reads the symbols of all loaded libraries.
_DUMP_S = 20.0
# After a collective failed, a rank without a heartbeat for this many beats is the cause.
_BEATS_AFTER_FAILURE = 6
_VERDICT = "verdict"
_RUNS = count()
# Files on the stack of a thread that waits for other ranks.
_WAITING_IN = ("torch/distributed/", "deepspeed/comm/", "reptrain/distributed/world.py")


class Heartbeat(NamedTuple):
    """What a rank reports about itself."""

    beat: int
    """Increases while the process is alive."""
    progress: int
    """Increases while the main thread makes progress."""
    waiting: bool
    """Whether the main thread waits for other ranks."""
    broken: bool
    """Whether a collective failed on this rank."""
    failed: str | None
    """The rank's own error, if it failed."""


class Blame(NamedTuple):
    """The ranks that made the run fail."""

    ranks: list[int]
    how: str
    by_itself: bool
    """Whether the rank failed and reported its own error."""
    timeout_s: float

    @property
    def error(self) -> RunError:
        """The error that names the ranks."""
        several = len(self.ranks) > 1
        return RunError(
            f"ranks {', '.join(map(str, self.ranks))}" if several else f"rank {self.ranks[0]}",
            got=self.how,
            rule="must not fail"
            if self.by_itself
            else f"must make progress within train.rank_timeout_seconds ({self.timeout_s:g})",
            remedy="Check its output and its machine; the same command resumes from the last checkpoint.",
        )


class _Seen(NamedTuple):
    heartbeat: Heartbeat
    beat_at: float
    progress_at: float


class Watchdog:
    """The watchdog of one rank.

    Args:
        store: The rendezvous store; the watchdog opens a connection of its own.
        rank: This process's rank.
        world_size: Number of ranks.
        timeout_s: Seconds that a rank may go without a heartbeat or progress.
        end: Called from a thread to end the process.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        world_size: int,
        timeout_s: float,
        end: Callable[[Blame], None],
    ) -> None:
        own = store.clone() if hasattr(store, "clone") else store
        self._store = PrefixStore(f"reptrain-watch-{next(_RUNS)}", own)
        self._store.set_timeout(timedelta(seconds=timeout_s))
        self._rank, self._world_size, self._timeout_s, self._end = rank, world_size, timeout_s, end
        self._beat_s = min(_BEAT_S, timeout_s / 10)
        self._beat, self._progress = 0, 0
        self._stack: list[tuple[str, int]] = []
        self._broken = False
        self._failed: str | None = None
        self._seen: dict[int, _Seen] = {}
        self._exchanged_at = time.monotonic()
        self._verdict: Blame | None = None
        self._decided, self._stopped = threading.Event(), threading.Event()
        self._main_thread = threading.get_ident()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._exchange, self._guard)]
        self._send()
        if rank == 0:
            self._store.set(_VERDICT, "")

    def start(self) -> None:
        """Start the threads. Every rank must have created its watchdog before."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the threads, before the ranks leave the process group."""
        self._stopped.set()
        # A thread that waits for a lost store is left behind.
        self._threads[0].join(timeout=5 * self._beat_s)

    def pulse(self) -> None:
        """Report progress of the main thread."""
        self._progress += 1

    def fail(self, error: BaseException) -> None:
        """Report this rank's own error to the others."""
        self._failed = f"{type(error).__name__}: {error}"[:500]
        with suppress(RuntimeError):
            self._send()

    def explain(self) -> Blame | None:
        """The ranks because of which a collective failed, or None if they are not known within some beats."""
        self._broken = True
        self._decided.wait(timeout=3 * _BEATS_AFTER_FAILURE * self._beat_s)
        return self._verdict

    def _send(self) -> None:
        self._beat += 1
        stack = _stack(sys._current_frames().get(self._main_thread))
        if stack != self._stack:
            # Long work without a forward pass, such as loading a checkpoint, shows in a changing stack.
            self._progress += 1
            self._stack = stack
        waiting = any(part in file for file, _ in stack for part in _WAITING_IN)
        heartbeat = Heartbeat(self._beat, self._progress, waiting, self._broken, self._failed)
        self._store.set(str(self._rank), json.dumps(heartbeat))

    def _exchange(self) -> None:
        """Thread that exchanges heartbeats: rank 0 reads those of all ranks, the others that of rank 0."""
        watched = range(self._world_size) if self._rank == 0 else (0,)
        try:
            while not self._stopped.wait(self._beat_s):
                self._send()
                *heartbeats, verdict = self._store.multi_get([*map(str, watched), _VERDICT])
                self._exchanged_at = time.monotonic()
                for rank, text in zip(watched, heartbeats, strict=True):
                    self._note(rank, Heartbeat(*json.loads(text)))
                blame = Blame(*json.loads(verdict)) if verdict else self._find_fault()
                if blame is not None:
                    if self._rank == 0:
                        self._store.set(_VERDICT, json.dumps(blame))
                    self._decide(blame)
                    return
        except RuntimeError as error:
            if not self._stopped.is_set():
                reason = str(error).splitlines()[0][:120]
                self._decide(self._blame([0], f"no answer from the rendezvous store ({reason})"))

    def _note(self, rank: int, heartbeat: Heartbeat) -> None:
        now, before = time.monotonic(), self._seen.get(rank)
        same_beat = before is not None and before.heartbeat.beat == heartbeat.beat
        same_progress = before is not None and before.heartbeat.progress == heartbeat.progress
        self._seen[rank] = _Seen(
            heartbeat,
            before.beat_at if before is not None and same_beat else now,
            before.progress_at if before is not None and same_progress else now,
        )

    def _blame(self, ranks: list[int], how: str, *, by_itself: bool = False) -> Blame:
        return Blame(ranks, how, by_itself, self._timeout_s)

    def _find_fault(self) -> Blame | None:
        """The ranks that failed, fell silent or hang, or None."""
        now = time.monotonic()
        failed = [rank for rank, seen in self._seen.items() if seen.heartbeat.failed]
        if failed:
            return self._blame(failed, f"{self._seen[failed[0]].heartbeat.failed}", by_itself=True)
        broken = self._broken or any(seen.heartbeat.broken for seen in self._seen.values())
        limit_s = _BEATS_AFTER_FAILURE * self._beat_s if broken else self._timeout_s
        silent = [rank for rank, seen in self._seen.items() if now - seen.beat_at > limit_s]
        if silent:
            return self._blame(silent, f"no heartbeat for {limit_s:.0f} s")
        if self._rank == 0 and all(now - seen.progress_at > self._timeout_s for seen in self._seen.values()):
            hanging = [rank for rank, seen in self._seen.items() if not seen.heartbeat.waiting]
            return self._blame(hanging or [*self._seen], f"no progress for {self._timeout_s:.0f} s")
        return None

    def _guard(self) -> None:
        """Thread that watches `_exchange`, which may wait for a lost store."""
        before = time.monotonic()
        while not self._stopped.wait(self._beat_s) and not self._decided.is_set():
            now = time.monotonic()
            if now - before > self._timeout_s / 2:
                # This process itself was stopped: give it time to read the other ranks' heartbeats.
                self._exchanged_at = now
            before = now
            limit_s = _BEATS_AFTER_FAILURE * self._beat_s if self._broken else self._timeout_s
            if now - self._exchanged_at > limit_s:
                self._decide(self._blame([0], f"no heartbeat for {limit_s:.0f} s"))

    def _decide(self, blame: Blame) -> None:
        self._verdict = blame
        self._decided.set()
        # The main thread may be in a collective that never returns; give it a moment to return by itself.
        self._stopped.wait(2 * self._beat_s)
        if not (self._broken or self._stopped.is_set() or self._failed):
            self._end(blame)


def _stack(frame: FrameType | None) -> list[tuple[str, int]]:
    places = []
    while frame is not None:
        places.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return places


def end_process(error: RunError) -> None:
    """End the process with the exit code of a user error. The main thread may hang and cannot do it.

    Prints the stacks of all threads, which show what the main thread waits for. Where py-spy is installed,
    their native frames follow, such as those of NCCL.
    """
    rank = shown_rank() or "0"
    with suppress(OSError):
        os.write(2, f"rank {rank}: error: {error}\nrank {rank}: stacks of its threads:\n".encode())
        faulthandler.dump_traceback(2, all_threads=True)
        _dump_native_stacks(rank)
    os._exit(2)


def _dump_native_stacks(rank: str) -> None:
    beside = Path(sys.executable).with_name("py-spy")
    py_spy = beside if beside.exists() else shutil.which("py-spy")
    if py_spy is None:
        return
    os.write(2, f"rank {rank}: stacks with native frames, by py-spy:\n".encode())
    with suppress(subprocess.TimeoutExpired):
        command = [py_spy, "dump", "--native", "--pid", str(os.getpid())]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, stderr=2, timeout=_DUMP_S, check=False)


@contextmanager
def watching(
    store: Store | None, world: World, *, timeout_s: float, tell: Callable[[BaseException], None]
) -> Iterator[Callable[[], None]]:
    """Run the watchdog within the context. Call the value whenever the main thread makes progress.

    Args:
        store: The rendezvous store; None for a single process.
        world: The ranks.
        timeout_s: Seconds that a rank may go without a heartbeat or progress.
        tell: Records why the run failed, if the main rank cannot.
    """
    if store is None:
        yield lambda: None
        return

    def record(blame: Blame, *, stuck: bool) -> None:
        others = set(range(world.world_size)).difference(blame.ranks)
        # A main rank that failed has recorded its error; the first other rank records that of a silent one.
        if world.rank == min(others, default=0) and (stuck if world.is_main else not blame.by_itself):
            tell(blame.error)

    def end(blame: Blame) -> None:
        record(blame, stuck=True)
        end_process(blame.error)

    watchdog = Watchdog(store, rank=world.rank, world_size=world.world_size, timeout_s=timeout_s, end=end)
    world.barrier()
    watchdog.start()
    try:
        yield watchdog.pulse
    except Exception as error:
        if _is_collective_error(error) and (blame := watchdog.explain()) is not None:
            record(blame, stuck=False)
            raise blame.error from error
        watchdog.fail(error)
        raise
    finally:
        watchdog.stop()


def _is_collective_error(error: Exception) -> bool:
    # gloo raises plain RuntimeErrors.
    words = ("gloo", "connection", "nccl", "timed out")
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )
