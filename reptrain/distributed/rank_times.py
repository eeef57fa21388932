"""Times of the forward passes on each rank, which identify ranks that slow down the others.

A step takes equally long on every rank, since the ranks wait for each other. The forward passes of a rank
include no waiting, except at ZeRO stage 3 and with expert or sequence parallelism. The ranks exchange their
times through the rendezvous store every N steps, without a collective and without waiting: rank 0 reads the
times that the others wrote last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.distributed import PrefixStore, Store

from reptrain.distributed.world import World

STEPS = 50
"""Steps between exchanges."""
_RATIO = 1.3
_IN_A_ROW = 3


def stragglers(ms: list[float | None]) -> list[int]:
    """Ranks that take more than 1.3 times the median of the others.

    >>> stragglers([10.0, 30.0, 11.0, 10.0])
    [1]
    >>> stragglers([10.0, None])
    []
    """
    known = {rank: value for rank, value in enumerate(ms) if value is not None}
    others = {rank: [value for other, value in known.items() if other != rank] for rank in known}
    return [rank for rank, rest in others.items() if rest and known[rank] > _RATIO * median(rest)]


class RankTimes:
    """Measures the forward passes of one rank, and collects those of all ranks on rank 0.

    Args:
        store: The rendezvous store.
        world: The ranks.
        module: The module whose forward passes are measured while gradients are enabled.
        tell: Called on rank 0 after every exchange with the milliseconds of each rank per step, None if
            unknown, and the ranks that were stragglers in the last three exchanges.
        steps: Steps between exchanges.
    """

    def __init__(
        self,
        store: Store,
        world: World,
        module: nn.Module,
        tell: Callable[[list[float | None], list[int]], None] | None = None,
        *,
        steps: int = STEPS,
    ) -> None:
        self._store, self._world, self._tell, self._steps = PrefixStore("times", store), world, tell, steps
        self._marks: list[tuple[Any, Any]] = []
        self._start: Any = None
        self._done = 0
        self._recent: list[set[int]] = []
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def step(self) -> None:
        """Count a step, and exchange the times after every N steps."""
        self._done += 1
        if self._done % self._steps:
            return
        total_ms = sum(_elapsed_ms(start, end) for start, end in self._marks)
        self._marks.clear()
        self._store.set(str(self._world.rank), json.dumps(total_ms / self._steps))
        if self._tell is not None:
            ms = [self._read(rank) for rank in range(self._world.world_size)]
            self._recent = [*self._recent, {*stragglers(ms)}][-_IN_A_ROW:]
            lasting = set.intersection(*self._recent) if len(self._recent) == _IN_A_ROW else set()
            self._tell(ms, sorted(lasting))

    def _read(self, rank: int) -> float | None:
        # `get` would wait for a rank that has not written its times yet.
        key = str(rank)
        return float(json.loads(self._store.get(key))) if self._store.check([key]) else None

    def _now(self) -> Any:
        if self._world.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _begin(self, *_: Any) -> None:
        self._start = self._now() if torch.is_grad_enabled() else None

    def _end(self, *_: Any) -> None:
        if self._start is not None:
            self._marks.append((self._start, self._now()))
            self._start = None


def _elapsed_ms(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return 1000 * (float(end) - start)
    end.synchronize()
    return float(start.elapsed_time(end))
