"""Running average of the weights: updated each step, saved in checkpoints, evaluated like the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from reptrain.checkpoint import state
from reptrain.checkpoint.state import WEIGHT, Piece
from reptrain.config.scheduled import RunPosition
from reptrain.config.sections import AverageConfig
from reptrain.distributed.engine import Engine
from reptrain.distributed.world import World

AVERAGE = "average"


def saved_pieces(engine: Engine, average: WeightAverage | None, world: World) -> list[Piece]:
    """The pieces that a rank writes to a checkpoint, with those of the average if there is one."""
    held = state.own_pieces(engine, rank=world.rank, world_size=world.world_size)
    return held if average is None else average.pieces(held)


class WeightAverage:
    """Averages the pieces of the weights that this rank holds.

    Before `config.start` the average equals the weights. After it, `ema` decays exponentially and `mean`
    weighs every step equally.

    Args:
        config: Kind of average, its decay and its start.
        engine: The engine around the model.

    Source:
        Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992; Izmailov et al.,
        "Averaging weights leads to wider optima and better generalization", 2018 (mean after a start).
    """

    def __init__(self, config: AverageConfig, engine: Engine) -> None:
        self._config = config
        self._engine = engine
        self.steps = 0
        """Steps included in the average."""
        self._values = {(p.name, p.start): p.views[WEIGHT].clone() for p in state.pieces(engine)}

    @torch.no_grad()
    def update(self, progress: RunPosition) -> None:
        """Add the weights after a step.

        Args:
            progress: Position of the run at the start of the step.
        """
        is_on = progress.position(self._config.start.unit) >= self._config.start.amount
        self.steps = self.steps + 1 if is_on else 0
        share = 1.0 if self.steps <= 1 else self._share()
        for piece in state.pieces(self._engine):
            weight, average = piece.views[WEIGHT], self._values[piece.name, piece.start]
            # Not lerp: at a share of 1 the average must equal the weight bit for bit.
            average.copy_(weight) if share == 1 else average.lerp_(weight, share)

    def _share(self) -> float:
        """Share of the newest weights in the average."""
        return 1 / self.steps if self._config.name == "mean" else 1 - self._config.decay

    def pieces(self, held: list[Piece]) -> list[Piece]:
        """The pieces with their averages added, for a checkpoint to write or read."""
        return [p._replace(views=p.views | {AVERAGE: self._values[p.name, p.start]}) for p in held]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the average into the engine's model within the context. Every rank calls it."""
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
