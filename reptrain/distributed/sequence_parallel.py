"""Sequence parallelism: the ranks of a group share the positions of each row.

Outside of attention each rank has some of the positions. Before attention an all-to-all exchanges positions
for heads, after it the reverse, so that each rank attends over all positions with some of the heads.
docs/decisions/sequence-parallelism.md gives the reasons.

Shapes: B rows, T positions of the sequence, P positions of this rank, R ranks of a group, H heads, K heads of
this rank, N width of a head.

Source:
    Jacobs et al., "DeepSpeed Ulysses: System optimizations for enabling training of extreme long sequence
    transformer models", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from reptrain.distributed.exchange import all_to_all
from reptrain.distributed.world import World
from reptrain.model import Decoder, EncoderDecoder
from reptrain.model.dropout import LayerKeys
from reptrain.model.sequence import MaybeTensor, WholeSequence
from reptrain_kernels.ops.linear_cross_entropy import Loss


def split_sequences(model: nn.Module, world: World, *, timeout_s: float) -> None:
    """Let a model compute this rank's positions of each row only. Every rank calls it.

    Args:
        model: The model; it is changed in place.
        world: The ranks; the ranks of a group are consecutive.
        timeout_s: `train.rank_timeout_seconds`.
    """
    assert isinstance(model, Decoder | EncoderDecoder)
    size = world.sequence_ranks
    # A longer timeout than the watchdog's, which should report first.
    timeout = timedelta(seconds=2 * timeout_s)
    groups = [
        dist.new_group(range(first, first + size), timeout=timeout)
        for first in range(0, world.world_size, size)
    ]
    model.sequence = SplitSequence(groups[world.data_rank], rank=world.sequence_rank, size=size)


class SplitSequence(WholeSequence):
    """Some of the positions, and some of the heads, of the ranks of a group.

    Positions are split as evenly as possible. Heads are split evenly.

    >>> split = SplitSequence(None, rank=1, size=4).of(10)
    >>> split.part(torch.arange(10), dim=0).tolist()
    [2, 3, 4]

    Args:
        group: The process group.
        rank: This rank's index in the group.
        size: R.
        num_positions: T.
    """

    def __init__(self, group: Any, *, rank: int, size: int, num_positions: int = 0) -> None:
        self._group, self._rank, self._size = group, rank, size
        ends = [num_positions * end // size for end in range(size + 1)]
        self._first = ends[rank]
        self._counts = [end - first for first, end in pairwise(ends)]
        self._own = self._counts[rank]

    def of(self, num_positions: int) -> Self:
        """See `WholeSequence.of`."""
        return type(self)(self._group, rank=self._rank, size=self._size, num_positions=num_positions)

    def positions(self, device: torch.device) -> Tensor:
        """See `WholeSequence.positions`."""
        return torch.arange(self._first, self._first + self._own, device=device)

    def part(self, x_BT: MaybeTensor, dim: int = 1) -> MaybeTensor:
        """See `WholeSequence.part`."""
        return x_BT if x_BT is None else x_BT.narrow(dim, self._first, self._own)

    def own_heads(self, x_H: Tensor, dim: int = 0) -> Tensor:
        """See `WholeSequence.own_heads`."""
        return x_H.chunk(self._size, dim)[self._rank]

    # torch.compile breaks the graph at the exchanges, as at those of experts.
    @torch.compiler.disable
    def to_heads(self, *x_BPHN: Tensor) -> Sequence[Tensor]:
        """See `WholeSequence.to_heads`. Tensors are sent together; fewer heads than ranks are repeated."""
        x_BPRKN = [self._repeated(x).unflatten(2, (self._size, -1)) for x in x_BPHN]
        sent_RPBKN = torch.cat(x_BPRKN, 3).permute(2, 1, 0, 3, 4)
        sent = [self._own] * self._size
        received_TBKN = all_to_all(sent_RPBKN.flatten(0, 1), sent, self._counts, self._group)
        return received_TBKN.transpose(0, 1).split([x.shape[3] for x in x_BPRKN], dim=2)

    @torch.compiler.disable
    def to_positions(self, y_BTKN: Tensor) -> Tensor:
        """See `WholeSequence.to_positions`."""
        received = [self._own] * self._size
        y_XBKN = all_to_all(y_BTKN.transpose(0, 1), self._counts, received, self._group)
        return y_XBKN.unflatten(0, (self._size, -1)).permute(2, 1, 0, 3, 4).flatten(2, 3)

    def _repeated(self, x_BPHN: Tensor) -> Tensor:
        heads = x_BPHN.shape[2]
        return x_BPHN.repeat_interleave(self._size // heads, dim=2) if heads < self._size else x_BPHN

    def keys(self, layers: Sequence[LayerKeys | None], device: torch.device) -> Sequence[LayerKeys | None]:
        """See `WholeSequence.keys`."""
        position_P = self.positions(device)
        return [
            keys and keys._replace(head_ABH=self.own_heads(keys.head_ABH, -1), position_P=position_P)
            for keys in layers
        ]

    def of_all_positions(self, loss: Tensor | Loss) -> Tensor | Loss:
        """See `WholeSequence.of_all_positions`."""
        if not isinstance(loss, Loss):
            return loss
        return loss._replace(nats=self._spread(loss.nats), is_correct=self._spread(loss.is_correct))

    def _spread(self, x_BP: Tensor) -> Tensor:
        x_BT = x_BP.new_zeros(len(x_BP), sum(self._counts))
        self.part(x_BT).copy_(x_BP)
        return x_BT
