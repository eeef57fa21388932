"""Runs that are disturbed in the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from reptrain.batch.loader import Loader, StepBatch


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Make ``action`` happen when the loop asks for a step's batch."""
    iterate = Loader.iterate

    def interrupted(self: Loader, first_step: int = 0) -> Iterator[StepBatch]:
        for batch in iterate(self, first_step):
            if batch.step == step:
                action()
            yield batch

    monkeypatch.setattr(Loader, "iterate", interrupted)


def crash() -> None:
    raise KeyboardInterrupt
