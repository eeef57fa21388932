"""Score a model on windows, in evaluation mode.

B: rows; T: positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reptrain.batch.collate import MicroBatch
from reptrain.batch.objectives import Objective
from reptrain.distributed.world import World
from reptrain_kernels.ops.linear_cross_entropy import Targets


@dataclass(frozen=True)
class Score:
    """Sums over a set of windows, the same on every rank."""

    nats: float
    loss_tokens: int
    """What the nats are divided by: `tokens`, or more where the nats are a bound for more."""
    text_bytes: float
    """UTF-8 bytes of the text that the nats tell; sentinels and EOS have none."""
    correct: int
    tokens: int
    """Tokens scored."""
    raw_correct: int
    """Of `correct` the window's own tokens, without sentinels and the EOS that ends an example."""
    raw_tokens: int
    """Of `tokens` the same."""

    @property
    def nats_per_token(self) -> float:
        """The loss."""
        return self.nats / self.loss_tokens


@torch.no_grad()
def score(
    engine: Any,
    micro_batches: Sequence[MicroBatch],
    *,
    world: World,
    objective: Objective,
    byte_length_V: Tensor,
) -> Score:
    """Sum nats and right guesses over all ranks' windows, without dropout.

    Args:
        engine: DeepSpeed's engine, or a plain model.
        micro_batches: This rank's windows; as many on every rank, since ZeRO-3 gathers weights together.
        world: The ranks.
        objective: Makes examples of windows.
        byte_length_V: float64, UTF-8 bytes that each id stands for.
    """
    byte_length_V = byte_length_V.to(world.device)
    sums = torch.zeros(7, dtype=torch.float64, device=world.device)
    for micro_batch in micro_batches:
        batch = micro_batch.to(world.device)
        example = objective.example(batch)
        found = engine(**example.inputs, targets=Targets(example.targets_BT))
        is_scored_BT, is_raw_BT = example.is_scored_BT, example.is_raw_BT
        nats = example.weighted(found.nats).double().sum()
        text_bytes = example.text_bytes(batch, byte_length_V)
        counted = (
            example.loss_tokens_B,
            *(found.is_correct, is_scored_BT, found.is_correct & is_raw_BT, is_raw_BT),
        )
        sums += torch.stack([nats, text_bytes, *(count.sum().double() for count in counted)])
    nats, text_bytes, loss_tokens, *counts = world.sum(sums).tolist()
    return Score(nats, int(loss_tokens), text_bytes, *map(int, counts))
