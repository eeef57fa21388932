"""Times of the ranks, exchanged through a store: a rank that stays slow is reported."""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.distributed import HashStore

from reptrain.distributed.rank_times import RankTimes
from reptrain.distributed.world import World


class Sleeping(nn.Module):
    """A module whose forward pass takes a given time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return x


def test_a_rank_that_stays_slow_is_named() -> None:
    store, told = HashStore(), []
    modules = [Sleeping(0.0), Sleeping(0.02)]
    worlds = [World(rank, 2, rank, torch.device("cpu")) for rank in range(2)]
    tells = [lambda ms, slow: told.append((ms, slow)), None]
    times = [
        RankTimes(store, world, module, tell, steps=2)
        for world, module, tell in zip(worlds, modules, tells, strict=True)
    ]
    for _ in range(8):
        for module in modules:
            module(torch.ones(1))
            with torch.no_grad():
                # Evaluation does not count.
                module(torch.ones(1))
        for one in times:
            one.step()
    # Rank 0 does not wait for the first time of rank 1.
    assert told[0][0][1] is None and told[0][1] == []
    assert all(20 <= ms[1] < 40 + ms[0] for ms, _ in told[1:])
    assert [slow for _, slow in told] == [[], [], [], [1]]
