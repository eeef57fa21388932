"""The definitions of `rms_norm` and of the dropout before a residual add, in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reptrain_kernels import counter, rates


class Drops(NamedTuple):
    """What of a branch is dropped. A key of None drops nothing; rates may change from call to call."""

    unit_key_B: Tensor | None = None
    """int64: the call key of each row's units (see `counter`); or [B, T]: of each position's units (see
    `counter.position_keys`)."""
    unit_rate: rates.Rate = 0.0
    """Probability of a unit, in [0, 1), a number or packed (see `counter.dropout`)."""
    path_key_B: Tensor | None = None
    """int64: the call key of each row's branch, a single unit at position 0."""
    path_rate: rates.Rate = 0.0
    """Probability of a row's whole branch, in [0, 1), as the units'."""

    def by_position(self) -> Drops:
        """The same for a stream whose rows are single positions; the units have a key for each position."""
        if self.path_key_B is None or self.unit_key_B is None:
            return self
        return self._replace(path_key_B=self.path_key_B[:, None].expand_as(self.unit_key_B))


class PackedDrops(NamedTuple):
    """`Drops` as operators take them: a key and its packed rate are both there, or neither."""

    unit_key_B: Tensor | None
    unit_rate_2: Tensor | None
    path_key_B: Tensor | None
    path_rate_2: Tensor | None


def drop_reference(branch_BTD: Tensor, drops: PackedDrops) -> Tensor:
    """The definition in plain torch."""
    if drops.unit_key_B is not None and drops.unit_rate_2 is not None:
        branch_BTD = counter.dropout(branch_BTD, drops.unit_key_B, drops.unit_rate_2, impl="torch")
    if drops.path_key_B is None or drops.path_rate_2 is None:
        return branch_BTD
    path_B11 = branch_BTD.new_ones(*branch_BTD.shape[:-2], 1, 1)
    return branch_BTD * counter.dropout(path_B11, drops.path_key_B, drops.path_rate_2, impl="torch")


def rms_norm_reference(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The definition in plain torch; in fp32, or float64 for inputs of float64."""
    full = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(full.square().mean(-1, keepdim=True) + eps)
    return (full * scale).to(x.dtype) * weight_D
