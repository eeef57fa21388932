"""Sampling of the next token.

A draw is a function of (seed, row, position), without generator state: the result of a row does not depend on
the batch.

Shapes: B rows, V ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reptrain import random
from reptrain.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Raises:
        ConfigError: If a value is out of range.
    """

    temperature: float = 0.0
    """Divisor of the logits; 0: greedy."""
    top_p: float = 1.0
    """Sample from the smallest set of most likely tokens whose total probability is at least this."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        for name, value, holds, rule in (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "must be at least 0"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "must be above 0, and at most 1"),
            ("seed", self.seed, 0 <= self.seed < 2**63, "must be at least 0, and below 2**63"),
        ):
            if not holds:
                raise ConfigError(name, got=value, rule=rule, remedy="Use another value.")

    def choose(self, logits_BV: Tensor, row_B: Tensor, position: int) -> Tensor:
        """The next token of each row, int64 [B].

        Args:
            logits_BV: Logits of the allowed ids.
            row_B: int64, on the CPU: index of each row among all prompts.
            position: Number of tokens already generated for each row.
        """
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        # Subtract the maximum first: a small temperature then underflows to 0 instead of overflowing.
        logits_BV = logits_BV.double()
        below_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
        probability_BV = (below_BV / self.temperature).softmax(-1)
        sorted_BV, id_BV = probability_BV.sort(dim=-1, descending=True, stable=True)
        reached_BV = sorted_BV.cumsum(-1)
        # The most likely token always stays.
        left_BV = sorted_BV * (reached_BV - sorted_BV < self.top_p)
        key_B = random.key(self.seed, "sampling", row_B.numpy())
        drawn_B = torch.from_numpy(random.uniform(key_B, np.asarray(position))).to(logits_BV.device)
        target_B1 = drawn_B[:, None] * left_BV.sum(-1, keepdim=True)
        place_B1 = torch.searchsorted(left_BV.cumsum(-1), target_B1, right=True)
        # The target may exceed the last cumulative sum by rounding.
        last_B1 = (left_BV > 0).sum(-1, keepdim=True) - 1
        return id_BV.gather(1, torch.minimum(place_B1, last_B1))[:, 0]
