"""The choice of the implementation of a kernel, with its default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Implementation = Literal["torch", "triton"]

_assumed_impl: Implementation | None = None
_assumed_capability = 80


def choose_implementation(device: torch.device, asked: Implementation | None = None) -> Implementation:
    """Choose the implementation of a call.

    Args:
        device: Device of the tensors.
        asked: The implementation that the caller wants; None: Triton on CUDA devices, torch elsewhere.

    Returns:
        "torch" or "triton".

    Raises:
        ValueError: If ``asked`` is not an implementation.
    """
    if asked is None:
        return _assumed_impl or ("triton" if device.type == "cuda" else "torch")
    if asked not in get_args(Implementation):
        raise ValueError(f"impl: must be one of {get_args(Implementation)}, but got {asked!r}")
    return asked


def choose_grouped(
    device: torch.device, dtype: torch.dtype, asked: Implementation | None = None
) -> Implementation:
    """`choose_implementation` for grouped matrix products.

    For bf16 on compute capability 9 and 10 (H100, B200), torch multiplies all groups in one kernel and is the
    default. Elsewhere on CUDA, torch 2.13 copies the sizes to the host and multiplies group by group; there
    Triton is the default.
    """
    is_default = asked is None and _assumed_impl is None
    if is_default and device.type == "cuda" and dtype == torch.bfloat16:
        return "torch" if capability(device) // 10 in (9, 10) else "triton"
    return choose_implementation(device, asked)


def capability(device: torch.device) -> int:
    """The compute capability that selects the tiles of a call: 80 for A100, 90 for H100, 100 for B200."""
    if device.type != "cuda":
        return _assumed_capability
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def matmul_precision(dtype: torch.dtype) -> str:
    """Triton's `input_precision` of products: for fp32, three TF32 products, or one if torch allows TF32."""
    if dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest":
        return "tf32x3"
    return "tf32"


@contextmanager
def assume(*, impl: Implementation | None = None, capability: int = 80) -> Iterator[None]:
    """Change the defaults within a context; for tests and benchmarks.

    Args:
        impl: Default implementation on every device.
        capability: Compute capability that devices other than CUDA are treated as.
    """
    global _assumed_impl, _assumed_capability
    before = _assumed_impl, _assumed_capability
    _assumed_impl, _assumed_capability = impl, capability
    try:
        yield
    finally:
        _assumed_impl, _assumed_capability = before
