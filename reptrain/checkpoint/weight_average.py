"""An average of the weights over the run: kept beside them, saved with them, scored in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from reptrain.checkpoint import state
from reptrain.checkpoint.state import WEIGHT, Piece
from reptrain.config.scheduled import RunPosition
from reptrain.config.schema import AverageConfig

AVERAGE = "average"


class WeightAverage:
    """Averages the pieces of the weights that this rank holds.

    Before `config.start` it is the weights themselves. Then an exponential average forgets at its rate, and a
    mean counts every step alike.

    Args:
        config: What is averaged.
        engine: DeepSpeed's engine around the model.

    Source:
        Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992; Izmailov et al.,
        "Averaging weights leads to wider optima and better generalization", 2018 (mean from a start on).
    """

    def __init__(self, config: AverageConfig, engine: Any) -> None:
        self._config = config
        self._engine = engine
        self.steps = 0
        """Steps that are in the average."""
        self._values = {(p.name, p.start): p.views[WEIGHT].clone() for p in state.pieces(engine)}

    @torch.no_grad()
    def update(self, progress: RunPosition) -> None:
        """Take up the weights after the step that began there."""
        is_on = progress.position(self._config.start.unit) >= self._config.start.amount
        self.steps = self.steps + 1 if is_on else 0
        share = 1.0 if self.steps <= 1 else self._share()
        for piece in state.pieces(self._engine):
            weight, average = piece.views[WEIGHT], self._values[piece.name, piece.start]
            # Not lerp: at a share of 1 it must give the weight's own bits.
            average.copy_(weight) if share == 1 else average.lerp_(weight, share)

    def _share(self) -> float:
        """The share of the newest weights in the average."""
        return 1 / self.steps if self._config.name == "mean" else 1 - self._config.decay

    def pieces(self, held: list[Piece]) -> list[Piece]:
        """The pieces with their averages, for a checkpoint to write or read."""
        return [p._replace(views=p.views | {AVERAGE: self._values[p.name, p.start]}) for p in held]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the engine's model be the average meanwhile. Every rank calls it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for piece in state.pieces(self._engine):
            weight: Tensor = piece.views[WEIGHT]
            average = self._values[piece.name, piece.start]
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)
        state.spread_weights(self._engine)
