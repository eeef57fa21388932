"""The definitions of `sort`, `dispatch` and `combine` in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """A permutation of assignments and its inverse."""

    order_N: Tensor
    """int64: the assignment at each place; assignment m K + k is token m's k-th."""
    place_MK: Tensor
    """int64: the place of each assignment."""

    @classmethod
    def of(cls, order_N: Tensor, top_k: int) -> Places:
        """The permutation that ``order_N`` is.

        >>> Places.of(torch.tensor([2, 0, 3, 1]), 2).place_MK.tolist()
        [[1, 3], [0, 2]]
        """
        place_N = torch.arange(len(order_N), device=order_N.device)
        return cls(order_N, torch.empty_like(order_N).scatter_(0, order_N, place_N).view(-1, top_k))


def sort_reference(expert_MK: Tensor, num_experts: int) -> tuple[Places, Tensor]:
    """See `sort`."""
    expert_N = expert_MK.flatten()
    # bincount has a data-dependent shape, which torch.compile does not take.
    count_E = expert_N.new_zeros(num_experts).scatter_add(0, expert_N, torch.ones_like(expert_N))
    return Places.of(expert_N.argsort(stable=True), expert_MK.shape[1]), count_E


def dispatch_reference(x_MD: Tensor, places: Places) -> Tensor:
    """See `dispatch`."""
    # Expanded before it is sorted, so that the gradient of a token is summed over k in a fixed order.
    x_MKD = x_MD[:, None].expand(-1, places.place_MK.shape[1], -1)
    return x_MKD.flatten(0, 1)[places.order_N]


def combine_reference(y_ND: Tensor, gate_MK: Tensor, places: Places) -> Tensor:
    """See `combine`."""
    y_MKD = y_ND[places.place_MK.flatten()].view(*gate_MK.shape, -1)
    return (y_MKD * gate_MK[..., None].to(y_ND.dtype)).sum(1)
