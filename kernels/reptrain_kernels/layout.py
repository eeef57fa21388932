"""Memory layout of tensors before a kernel launch."""

from __future__ import annotations

from torch import Tensor


def contiguous(*optional: Tensor | None) -> list[Tensor | None]:
    """Each tensor, copied if it is not contiguous; None stays None."""
    return [x if x is None else x.contiguous() for x in optional]
