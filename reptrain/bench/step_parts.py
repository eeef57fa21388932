"""The time of the parts of a training step, on the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from reptrain.distributed.engine import Engine

_METHODS = {"forward": "forward", "backward": "backward", "step": "update"}
REST = "the rest"


class Clock:
    """Times on a device: CUDA events on a GPU, else the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"

    def mark(self) -> Any:
        """A moment in the order of the device's work."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, begin: Any, end: Any) -> float:
        """Time between two marks; on a GPU both must have been reached."""
        return float(begin.elapsed_time(end)) if self._on_gpu else 1e3 * (end - begin)

    def now(self) -> float:
        """Seconds of the host's clock, after all work of the device."""
        if self._on_gpu:
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def seconds_since(self, begin: float) -> float:
        """Seconds since `now`, after all work of the device."""
        return self.now() - begin


class StepParts:
    """Times the engine's forward passes, backward passes and updates from now on, and what is left of a step.

    Args:
        engine: Its methods are replaced by timed ones.
        clock: The clock of its device.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._clock = clock
        self._open: list[tuple[str, Any, Any]] = []
        self._steps: list[dict[str, float]] = []
        for method, name in _METHODS.items():
            setattr(engine, method, self._timed(name, getattr(engine, method)))

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return call(*args, **kwargs)

        return timed

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block as part ``name`` of the current step."""
        begin = self._clock.mark()
        yield
        self._open.append((name, begin, self._clock.mark()))

    def end_step(self, seconds: float) -> None:
        """End a step of ``seconds``; the device must have finished its work."""
        step = dict.fromkeys(("loader", *_METHODS.values()), 0.0)
        for name, begin, end in self._open:
            step[name] += self._clock.milliseconds(begin, end)
        step[REST] = 1e3 * seconds - sum(step.values())
        self._steps.append(step)
        self._open.clear()

    def clear(self) -> None:
        """Forget all steps so far."""
        self._steps.clear()

    def milliseconds(self) -> dict[str, list[float]]:
        """Time of each part: one value for each step. The parts of a step sum to its time."""
        return {name: [step[name] for step in self._steps] for name in self._steps[0]} if self._steps else {}
