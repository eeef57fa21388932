"""The positions and heads of a sequence that a rank computes; without sequence parallelism all of them.

Under sequence parallelism the ranks of a group have the same rows. Outside of attention each rank has some of
the positions, within attention all positions and some of the heads
(see `reptrain.distributed.sequence_parallel`). Attention masks cover all positions.

Shapes: B rows, T positions of the sequence, P positions of this rank, H heads, K heads of this rank,
N width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, TypeVar

import torch
from torch import Tensor

from reptrain.model.dropout import LayerKeys
from reptrain.model.head import Distribution
from reptrain_kernels.ops.linear_cross_entropy import Loss, Targets

MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


class WholeSequence:
    """All positions and all heads: every method returns its argument."""

    def of(self, num_positions: int) -> Self:
        """The same ranks for sequences of T positions. The other methods need it."""
        return self

    def positions(self, device: torch.device) -> Tensor | None:
        """This rank's positions, int64 [P]; None: all of them."""
        return None

    def part(self, x_BT: MaybeTensor, dim: int = 1) -> MaybeTensor:
        """This rank's positions of a tensor with all positions along ``dim``."""
        return x_BT

    def own_heads(self, x_H: Tensor, dim: int = 0) -> Tensor:
        """This rank's heads of a tensor with all heads along ``dim``."""
        return x_H

    def to_heads(self, *x_BPHN: Tensor) -> Sequence[Tensor]:
        """Exchange this rank's positions of all heads for all positions of this rank's heads, x_BTKN each."""
        return x_BPHN

    def to_positions(self, y_BTKN: Tensor) -> Tensor:
        """The reverse of `to_heads`, y_BPHN."""
        return y_BTKN

    def keys(self, layers: Sequence[LayerKeys | None], device: torch.device) -> Sequence[LayerKeys | None]:
        """The dropout keys of layers for this rank's positions and heads."""
        return layers

    def targets(self, targets: Targets | None) -> Targets | None:
        """The targets of this rank's positions."""
        if targets is None:
            return None
        return targets._replace(target=self.part(targets.target), weight=self.part(targets.weight))

    def imitated(self, imitated: Distribution | None) -> Distribution | None:
        """A distribution at this rank's positions."""
        return None if imitated is None else imitated._replace(logits_BTV=self.part(imitated.logits_BTV))

    def of_all_positions(self, loss: Tensor | Loss) -> Tensor | Loss:
        """The loss of this rank's targets, with nats of 0 and no hits at other positions. Keeps logits."""
        return loss


WHOLE_SEQUENCE = WholeSequence()
