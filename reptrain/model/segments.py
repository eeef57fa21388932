"""Which positions belong together.

Segments are int64: the number of a position's document, 1 everywhere where attention may cross documents,
and 0 for padding. A position reads positions of its own segment only, padding too.

Shapes: B rows, T positions that read, S positions that are read.
"""

from __future__ import annotations

import torch
from torch import Tensor


def same_segment(reading_BT: Tensor, read_BS: Tensor) -> Tensor:
    """Whether two positions are of one segment, bool [B, T, S].

    Example:
        [[1, 1, 2]] and [[1, 2]] give [[[True, False], [True, False], [False, True]]].
    """
    return reading_BT[:, :, None] == read_BS[:, None, :]


def positions_in_segment(segments_BT: Tensor) -> Tensor:
    """How many positions of a row's same segment stand before each position, int64 [B, T].

    A segment need not be one stretch: a decoder reads the inputs of several documents, then their targets.

    >>> positions_in_segment(torch.tensor([[1, 1, 2, 2, 1, 0]])).tolist()
    [[0, 1, 0, 1, 2, 0]]
    """
    order_BT = segments_BT.argsort(dim=1, stable=True)
    sorted_BT = segments_BT.gather(1, order_BT)
    column_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    rank_BT = column_T - torch.searchsorted(sorted_BT, sorted_BT)
    return torch.empty_like(rank_BT).scatter_(1, order_BT, rank_BT)


def near(query_T: Tensor, key_S: Tensor, window: int) -> Tensor:
    """Whether two positions are fewer than ``window`` places apart, bool [..., T, S].

    Example:
        Queries [2, 3], keys [0, 1, 2] and a window of 2 give [[False, True, True], [False, False, True]].
    """
    return (query_T[..., None] - key_S).abs() < window


def visible(
    tokens_BT: Tensor,
    segments_BT: Tensor | None,
    prefix_B: Tensor | None,
    sliding_window: int | None = None,
) -> Tensor | None:
    """Which positions each position of a decoder reads, bool [B, 1, T, T]; None: itself and those before it.

    Example:
        Three positions and a prefix of [2] give [[[[True, True, False], [True, True, False],
        [True, True, True]]]].

    Args:
        tokens_BT: Gives T.
        segments_BT: A position reads its own segment only; None: any.
        prefix_B: int64, so many of a row's first positions are read by those before them too; None: none.
        sliding_window: A position reads only those fewer than this many places away; None: any.
    """
    if sliding_window is not None and sliding_window >= tokens_BT.shape[1]:
        sliding_window = None
    if segments_BT is None and prefix_B is None and sliding_window is None:
        return None
    column_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    visible_BTT = (column_T <= column_T[:, None])[None]
    if prefix_B is not None:
        visible_BTT = visible_BTT | (column_T < prefix_B[:, None, None])
    if segments_BT is not None:
        visible_BTT = visible_BTT & same_segment(segments_BT, segments_BT)
    if sliding_window is not None:
        visible_BTT = visible_BTT & near(column_T, column_T, sliding_window)
    return visible_BTT[:, None]
