"""Segments of packed documents.

Segments are int64: the number of a position's document, 1 everywhere where attention may cross documents,
and 0 for padding. A position attends to positions of its own segment only; padding does too.

Shapes: B rows, T positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def positions_in_segment(segments_BT: Tensor) -> Tensor:
    """The position of each token within its segment, int64 [B, T].

    A segment need not be contiguous: a decoder's input can be the inputs of several documents, then their
    targets.

    >>> positions_in_segment(torch.tensor([[1, 1, 2, 2, 1, 0]])).tolist()
    [[0, 1, 0, 1, 2, 0]]
    """
    order_BT = segments_BT.argsort(dim=1, stable=True)
    sorted_BT = segments_BT.gather(1, order_BT)
    column_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    rank_BT = column_T - torch.searchsorted(sorted_BT, sorted_BT)
    return torch.empty_like(rank_BT).scatter_(1, order_BT, rank_BT)
