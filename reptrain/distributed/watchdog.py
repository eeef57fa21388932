"""Ranks that watch each other, so that none waits forever for one that died or hangs.

A thread of every rank tells the others through the store where they met, about once a second, that the
process lives, how far its main thread came, and whether that waits for others. The main rank judges:

- a rank whose words stopped is dead or stopped;
- where all main threads stand still, those that do not wait for others hang;
- a rank that failed said so itself.

Its verdict reaches all; should the main rank fall silent, the others find that themselves. What a collective
on a dead rank does (an error under gloo, an endless wait under NCCL) does not matter then.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from types import FrameType
from typing import NamedTuple

import torch.distributed as dist

from reptrain.distributed.world import World
from reptrain.errors import RunError
from reptrain_launcher.rank_environment import shown_rank

_BEAT_S = 1.0
# After a collective broke, a rank that is silent for so many beats is the one that broke it.
_BEATS_AFTER_A_BREAK = 6
_VERDICT = "verdict"
_RUNS = count()
# Frames of a thread that waits for other ranks.
_WAITING_IN = ("torch/distributed/", "deepspeed/comm/", "reptrain/distributed/world.py")


class Signs(NamedTuple):
    """What a rank tells."""

    beat: int
    """Grows as long as the process lives."""
    progress: int
    """Grows as long as its main thread gets on."""
    waiting: bool
    """Whether the main thread waits for other ranks."""
    broken: bool
    """Whether a collective failed there."""
    failed: str | None
    """Why it failed by itself."""


class Verdict(NamedTuple):
    """Who is to blame."""

    ranks: list[int]
    how: str
    by_itself: bool
    """Whether it failed and said so."""
    timeout_s: float

    @property
    def error(self) -> RunError:
        """The error that names them."""
        several = len(self.ranks) > 1
        return RunError(
            f"ranks {', '.join(map(str, self.ranks))}" if several else f"rank {self.ranks[0]}",
            got=self.how,
            rule="must not fail"
            if self.by_itself
            else f"must get on within train.rank_timeout_seconds ({self.timeout_s:g})",
            remedy="Look at what it wrote last and at its machine; the same command goes on from the last"
            " checkpoint.",
        )


class _Seen(NamedTuple):
    signs: Signs
    beat_at: float
    position_at: float


class Watch:
    """One rank's part of the watch.

    Args:
        store: Where the ranks met; this takes a connection of its own.
        rank: This process's place among ``world_size``.
        world_size: All processes.
        timeout_s: How long a rank may be silent.
        end: Called from a thread with the verdict; it ends the process.
    """

    def __init__(
        self,
        store: dist.Store,
        *,
        rank: int,
        world_size: int,
        timeout_s: float,
        end: Callable[[Verdict], None],
    ) -> None:
        own = store.clone() if hasattr(store, "clone") else store
        self._store = dist.PrefixStore(f"reptrain-watch-{next(_RUNS)}", own)
        self._store.set_timeout(timedelta(seconds=timeout_s))
        self._rank, self._world_size, self._timeout_s, self._end = rank, world_size, timeout_s, end
        self._beat_s = min(_BEAT_S, timeout_s / 10)
        self._beat, self._progress = 0, 0
        self._stack: list[tuple[str, int]] = []
        self._broken = False
        self._failed: str | None = None
        self._seen: dict[int, _Seen] = {}
        self._exchanged_at = time.monotonic()
        self._verdict: Verdict | None = None
        self._judged, self._stopped = threading.Event(), threading.Event()
        self._main_thread = threading.get_ident()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._talk, self._guard)]
        self._tell()
        if rank == 0:
            self._store.set(_VERDICT, "")

    def start(self) -> None:
        """Begin, once every rank has made its watch."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the watch, before the ranks part."""
        self._stopped.set()
        # A thread that hangs on a store that is gone is left behind.
        self._threads[0].join(timeout=5 * self._beat_s)

    def pulse(self) -> None:
        """The main thread got on."""
        self._progress += 1

    def fail(self, error: BaseException) -> None:
        """Tell the others that this rank failed by itself."""
        self._failed = f"{type(error).__name__}: {error}"[:500]
        with suppress(RuntimeError):
            self._tell()

    def explain(self) -> Verdict | None:
        """Which rank is why a collective failed here, if it is found within some beats."""
        self._broken = True
        self._judged.wait(timeout=3 * _BEATS_AFTER_A_BREAK * self._beat_s)
        return self._verdict

    def _tell(self) -> None:
        self._beat += 1
        stack = _stack(sys._current_frames().get(self._main_thread))
        if stack != self._stack:
            # Long work without a forward pass, such as reading a checkpoint, is seen by where it stands.
            self._progress += 1
            self._stack = stack
        waiting = any(part in file for file, _ in stack for part in _WAITING_IN)
        signs = Signs(self._beat, self._progress, waiting, self._broken, self._failed)
        self._store.set(str(self._rank), json.dumps(signs))

    def _talk(self) -> None:
        """The thread that tells and listens."""
        heard = range(self._world_size) if self._rank == 0 else (0,)
        try:
            while not self._stopped.wait(self._beat_s):
                self._tell()
                *told, verdict = self._store.multi_get([*map(str, heard), _VERDICT])
                self._exchanged_at = time.monotonic()
                for rank, text in zip(heard, told, strict=True):
                    self._note(rank, Signs(*json.loads(text)))
                found = Verdict(*json.loads(verdict)) if verdict else self._look()
                if found is not None:
                    if self._rank == 0:
                        self._store.set(_VERDICT, json.dumps(found))
                    self._judge(found)
                    return
        except RuntimeError as error:
            if not self._stopped.is_set():
                words = str(error).splitlines()[0][:120]
                self._judge(self._blame([0], f"no answer where the ranks meet ({words})"))

    def _note(self, rank: int, signs: Signs) -> None:
        now, before = time.monotonic(), self._seen.get(rank)
        same_beat = before is not None and before.signs.beat == signs.beat
        same_place = before is not None and before.signs.progress == signs.progress
        self._seen[rank] = _Seen(
            signs,
            before.beat_at if before is not None and same_beat else now,
            before.position_at if before is not None and same_place else now,
        )

    def _blame(self, ranks: list[int], how: str, *, by_itself: bool = False) -> Verdict:
        return Verdict(ranks, how, by_itself, self._timeout_s)

    def _look(self) -> Verdict | None:
        """Which ranks to blame for what, or None."""
        now = time.monotonic()
        failed = [rank for rank, seen in self._seen.items() if seen.signs.failed]
        if failed:
            return self._blame(failed, f"{self._seen[failed[0]].signs.failed}", by_itself=True)
        broken = self._broken or any(seen.signs.broken for seen in self._seen.values())
        patience = _BEATS_AFTER_A_BREAK * self._beat_s if broken else self._timeout_s
        silent = [rank for rank, seen in self._seen.items() if now - seen.beat_at > patience]
        if silent:
            return self._blame(silent, f"no sign of life for {patience:.0f} s")
        if self._rank == 0 and all(now - seen.position_at > self._timeout_s for seen in self._seen.values()):
            hanging = [rank for rank, seen in self._seen.items() if not seen.signs.waiting]
            return self._blame(hanging or [*self._seen], f"no progress for {self._timeout_s:.0f} s")
        return None

    def _guard(self) -> None:
        """The thread that watches over the other one, which may wait for a store that is gone."""
        before = time.monotonic()
        while not self._stopped.wait(self._beat_s) and not self._judged.is_set():
            now = time.monotonic()
            if now - before > self._timeout_s / 2:
                # This process itself was stopped: let it hear what the others say.
                self._exchanged_at = now
            before = now
            patience = _BEATS_AFTER_A_BREAK * self._beat_s if self._broken else self._timeout_s
            if now - self._exchanged_at > patience:
                self._judge(self._blame([0], f"no sign of life for {patience:.0f} s"))

    def _judge(self, verdict: Verdict) -> None:
        self._verdict = verdict
        self._judged.set()
        # The main thread may be in a collective that never returns; it gets a moment to come back by itself.
        self._stopped.wait(2 * self._beat_s)
        if not (self._broken or self._stopped.is_set() or self._failed):
            self._end(verdict)


def _stack(frame: FrameType | None) -> list[tuple[str, int]]:
    found = []
    while frame is not None:
        found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return found


def end_process(error: RunError) -> None:
    """End at once with the exit code of a user's error: the main thread cannot be called back."""
    rank = shown_rank() or "0"
    with suppress(OSError):
        os.write(2, f"rank {rank}: error: {error}\n".encode())
    os._exit(2)


@contextmanager
def watching(
    store: dist.Store | None, world: World, *, timeout_s: float, tell: Callable[[BaseException], None]
) -> Iterator[Callable[[], None]]:
    """Watch over the ranks while they train; the value is to be called as often as the main thread gets on.

    Args:
        store: Where they met; None where this process is alone.
        world: The ranks.
        timeout_s: How long one may be silent.
        tell: Writes down why the run failed, where the main rank cannot or is stuck.
    """
    if store is None:
        yield lambda: None
        return

    def tell_of(verdict: Verdict, *, stuck: bool) -> None:
        others = set(range(world.world_size)).difference(verdict.ranks)
        # A main rank that failed by itself has told so; the first of the others speaks for a silent one.
        if world.rank == min(others, default=0) and (stuck if world.is_main else not verdict.by_itself):
            tell(verdict.error)

    def end(verdict: Verdict) -> None:
        tell_of(verdict, stuck=True)
        end_process(verdict.error)

    watch = Watch(store, rank=world.rank, world_size=world.world_size, timeout_s=timeout_s, end=end)
    world.barrier()
    watch.start()
    try:
        yield watch.pulse
    except Exception as error:
        if _is_of_a_collective(error) and (verdict := watch.explain()) is not None:
            tell_of(verdict, stuck=False)
            raise verdict.error from error
        watch.fail(error)
        raise
    finally:
        watch.stop()


def _is_of_a_collective(error: Exception) -> bool:
    # gloo's errors are plain RuntimeErrors.
    words = ("gloo", "connection", "nccl", "timed out")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )
