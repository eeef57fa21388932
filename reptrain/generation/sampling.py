"""Choosing the next token.

A draw is a function of (seed, row, position): no generator, so that neither the batch nor its other rows
change what a row gets.

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
    """The logits are divided by it; 0 takes the most likely token."""
    top_p: float = 1.0
    """Of the most likely tokens so many are left that their probabilities reach it."""
    seed: int = 0
    """Keys the draws."""

    def __post_init__(self) -> None:
        for name, value, holds, rule in (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "must be at least 0"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "must be above 0, and at most 1"),
            ("seed", self.seed, 0 <= self.seed < 2**63, "must be at least 0, and below 2**63"),
        ):
            if not holds:
                raise ConfigError(name, got=value, rule=rule, remedy="Choose another.")

    def choose(self, logits_BV: Tensor, row_B: Tensor, position: int) -> Tensor:
        """The next token of each row, int64 [B].

        Args:
            logits_BV: Of the ids that may come.
            row_B: int64, on the CPU: each row's number among all prompts.
            position: Tokens that each row has got before this one.
        """
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        # The largest is taken off first: a small temperature makes the others vanish, and nothing infinite.
        logits_BV = logits_BV.double()
        below_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
        probability_BV = (below_BV / self.temperature).softmax(-1)
        sorted_BV, id_BV = probability_BV.sort(dim=-1, descending=True, stable=True)
        reached_BV = sorted_BV.cumsum(-1)
        # The most likely one stays, however small top_p is.
        left_BV = sorted_BV * (reached_BV - sorted_BV < self.top_p)
        key_B = random.key(self.seed, "sampling", row_B.numpy())
        drawn_B = torch.from_numpy(random.uniform(key_B, np.asarray(position))).to(logits_BV.device)
        target_B1 = drawn_B[:, None] * left_BV.sum(-1, keepdim=True)
        place_B1 = torch.searchsorted(left_BV.cumsum(-1), target_B1, right=True)
        # Rounding may leave the sum a little behind the last place.
        last_B1 = (left_BV > 0).sum(-1, keepdim=True) - 1
        return id_BV.gather(1, torch.minimum(place_B1, last_B1))[:, 0]
