"""Dropout rates as thresholds of random words; the layout is that of `counter`."""

from __future__ import annotations

import torch
from torch import Tensor

Rate = float | Tensor
"""A dropout probability in [0, 1), or the result of `packed`."""


def threshold_and_scale(rate: float) -> tuple[int, float]:
    """The signed threshold below which a unit's word drops it, and the factor of kept values.

    Raises:
        ValueError: If ``rate`` is not in [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"rate: must be in [0, 1), but got {rate}")
    threshold = min(round(rate * 2**32), 2**32 - 1)
    return threshold - 2**31, 2**32 / (2**32 - threshold)


def packed(rate: Rate) -> Tensor:
    """A rate as compiled code takes it: a tensor, so that no value of it starts a new compilation.

    It lies on the CPU whatever the model's device: whoever launches a kernel reads it without waiting.

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
    """The threshold and the scale of a packed rate; None drops nothing."""
    if rate_2 is None:
        return threshold_and_scale(0.0)
    threshold, scale = rate_2.tolist()
    return int(threshold), scale
