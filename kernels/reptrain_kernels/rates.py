"""Dropout rates as thresholds of random words; the layout is that of `counter`."""

from __future__ import annotations

import torch
from torch import Tensor

Rate = float | Tensor
"""A dropout probability in [0, 1), or the result of `packed`."""


def threshold_and_scale(rate: float) -> tuple[int, float]:
    """The signed threshold of a rate, below which a word drops its unit, and the scale of kept values.

    Raises:
        ValueError: If ``rate`` is not in [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"rate: must be in [0, 1), but got {rate}")
    threshold = min(round(rate * 2**32), 2**32 - 1)
    return threshold - 2**31, 2**32 / (2**32 - threshold)


def packed(rate: Rate) -> Tensor:
    """A rate as a tensor, whose value can change without a new compilation.

    It is on the CPU for every device of the model, so that a launch reads it without a synchronization.

    Args:
        rate: In [0, 1), or packed already.

    Returns:
        float64 [2], on the CPU: the numbers of `threshold_and_scale`, both exact.

    Raises:
        ValueError: If the rate is not in [0, 1).
    """
    if isinstance(rate, Tensor):
        return rate
    return torch.tensor(threshold_and_scale(rate), dtype=torch.float64, device="cpu")


def unpacked(rate_2: Tensor | None) -> tuple[int, float]:
    """The threshold and the scale of a packed rate; None is a rate of 0."""
    if rate_2 is None:
        return threshold_and_scale(0.0)
    threshold, scale = rate_2.tolist()
    return int(threshold), scale
