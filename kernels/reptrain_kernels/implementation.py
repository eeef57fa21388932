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


def choose_grouped(
    device: torch.device, dtype: torch.dtype, asked: Implementation | None = None
) -> Implementation:
    """`choose_implementation` for products of many matrices, where torch has a kernel of its own in part.

    torch multiplies all groups in one kernel where the dtype is bf16 and the chip an H100, B200 or their like
    (capability 9 and 10); elsewhere on CUDA it takes the sizes to the host and multiplies group by group
    (torch 2.13), and there Triton is the default.
    """
    is_default = asked is None and _assumed_impl is None
    if is_default and device.type == "cuda" and dtype == torch.bfloat16:
        return "torch" if capability(device) // 10 in (9, 10) else "triton"
    return choose_implementation(device, asked)


def capability(device: torch.device) -> int:
    """For what the tiles of a call on ``device`` are chosen: 80 for A100, 90 for H100, 100 for B200."""
    if device.type != "cuda":
        return _assumed_capability
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def matmul_precision(dtype: torch.dtype) -> str:
    """Triton's `input_precision` of products: fp32 goes through the matrix units in three parts, unless the
    caller's torch allows tf32."""
    if dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest":
        return "tf32x3"
    return "tf32"


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
