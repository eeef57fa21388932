"""Which implementation of a kernel runs: the one place where the default is decided."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Implementation = Literal["torch", "triton"]

_assumed_impl: Implementation | None = None
_assumed_capability = 80


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
        return _assumed_impl or ("triton" if device.type == "cuda" else "torch")
    if asked not in get_args(Implementation):
        raise ValueError(f"impl: must be one of {get_args(Implementation)}, but got {asked!r}")
    return asked


def capability(device: torch.device) -> int:
    """For what the tiles of a call on ``device`` are chosen: 80 for A100, 90 for H100, 100 for B200."""
    if device.type != "cuda":
        return _assumed_capability
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@contextmanager
def assume(*, impl: Implementation | None = None, capability: int = 80) -> Iterator[None]:
    """Another default for the calls inside: what a test or a benchmark needs, and nothing else.

    Args:
        impl: Taken on every device where a call asks for none.
        capability: Of devices that are no CUDA devices.
    """
    global _assumed_impl, _assumed_capability
    before = _assumed_impl, _assumed_capability
    _assumed_impl, _assumed_capability = impl, capability
    try:
        yield
    finally:
        _assumed_impl, _assumed_capability = before
