"""Which implementation of a kernel runs: the one place where the default is decided."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Implementation = Literal["torch", "triton"]


def choose_implementation(device: torch.device, asked: Implementation | None = None) -> Implementation:
    """The implementation that a call on ``device`` runs.

    Args:
        device: Where the call's tensors are.
        asked: The caller's wish; None takes the default: Triton on CUDA devices, torch elsewhere.

    Returns:
        "torch" or "triton".

    Raises:
        ValueError: If ``asked`` is no implementation.
    """
    if asked is None:
        return "triton" if device.type == "cuda" else "torch"
    if asked not in get_args(Implementation):
        raise ValueError(f"impl: must be one of {get_args(Implementation)}, but got {asked!r}")
    return asked
