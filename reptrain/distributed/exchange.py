"""All-to-all between the ranks of a group, with gradients.

torch's own differentiable form in `torch.distributed.nn` is deprecated, and its successor is private.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def exchange(rows: Tensor, num_sent: Sequence[int], num_received: Sequence[int], group: Any) -> Tensor:
    """Send ``num_sent[p]`` rows to each rank p, in order, and receive ``num_received[p]``. No gradients."""
    received = rows.new_empty(sum(num_received), *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), [*num_received], [*num_sent], group=group)
    return received


class _Exchange(torch.autograd.Function):
    """All-to-all of rows; the backward pass returns the gradients."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, num_sent: Sequence[int], num_received: Sequence[int], group: Any
    ) -> Tensor:
        ctx.backward_arguments = num_received, num_sent, group
        return exchange(x_ND, num_sent, num_received, group)

    @staticmethod
    def backward(ctx: Any, dy_MD: Tensor) -> tuple[Tensor, None, None, None]:
        return exchange(dy_MD, *ctx.backward_arguments), None, None, None


def all_to_all(x_ND: Tensor, num_sent: Sequence[int], num_received: Sequence[int], group: Any) -> Tensor:
    """`exchange` with gradients."""
    # torch gives `apply` no types.
    apply: Any = _Exchange.apply
    x_MD: Tensor = apply(x_ND, num_sent, num_received, group)
    return x_MD
