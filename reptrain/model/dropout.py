"""Where dropout falls, and its masks: functions of (seed, site, step, global row, position, unit).

Shapes: B rows of a micro-batch, P places in a layer, H heads, T positions, S keys, D units.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor, nn

from reptrain.config.scheduled import RunPosition, Scheduled
from reptrain_kernels import counter
from reptrain_kernels.ops.norm import Drops, join

# Sites of a layer, at most.
_PLACES = 16


class Site(IntEnum):
    """The places in a layer; a site's number is 16 x layer + place. Numbers, once used, stay."""

    EMBEDDING = 0
    ATTENTION_WEIGHTS = 1
    ATTENTION_RESIDUAL = 2
    MLP_HIDDEN = 3
    MLP_RESIDUAL = 4
    CROSS_WEIGHTS = 5
    CROSS_RESIDUAL = 6
    STACK_OUTPUT = 7
    ROUTER = 8
    EXPERT_HIDDEN = 9
    ATTENTION_PATH = 10
    CROSS_PATH = 11
    MLP_PATH = 12
    INPUT_NOISE = 13


@dataclass(frozen=True, eq=False)
class DropoutContext:
    """What the masks of a forward pass depend on besides the place in the model.

    The masks of a row are the same on any rank and in any micro-batch.
    """

    seed: int
    """Of the run."""
    step: int
    """Optimizer step."""
    row_B: Tensor
    """int64: each row's number in the step's global batch; on the model's device."""
    key_B: Tensor = field(init=False, repr=False)
    """int64: the rows' keys, made here so that a compiled model sees tensors only, never a step's number."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key_B", counter.row_keys(self.seed, self.step, self.row_B))


def site_keys(key_B: Tensor | None, layer: int) -> Tensor | None:
    """The keys of a layer's sites, int64 [P, B]; None, where nothing is dropped, for None.

    They are made outside of the layer, which therefore does not know its number: one that runs several
    times has other masks each time.

    Args:
        key_B: The rows' keys (see `DropoutContext`).
        layer: Number of the layer in the whole model.
    """
    if key_B is None:
        return None
    site_P = torch.arange(_PLACES, device=key_B.device) + _PLACES * layer
    return counter.fold(key_B, site_P[:, None])


class Dropout(nn.Module):
    """Dropout at one site, or nothing where no keys are given.

    Its rate is a tensor that is no buffer: it stays on the CPU in float64 wherever the model goes, and in no
    checkpoint (see `counter.packed`).

    Args:
        rate: Probability of being dropped, in [0, 1). One that changes in the course of the run is what it
            is at the beginning until `set_rates` sets it.
        site: The place in the layer.
    """

    def __init__(self, rate: Scheduled | float, site: Site) -> None:
        super().__init__()
        self.schedule = rate if isinstance(rate, Scheduled) else Scheduled(value=rate)
        self.set_rate(self.schedule.first)
        self.site = site

    def set_rate(self, rate: float) -> None:
        """Drop at another rate from now on. Compiled code is compiled again if it leaves 0 or comes to it."""
        self.rate = rate
        self.is_on = rate > 0
        self.rate_2 = counter.packed(rate)

    def forward(self, x_BTD: Tensor, keys_PB: Tensor | None) -> Tensor:
        """Drop units of each position; ``keys_PB`` are those of the layer's sites."""
        key_B, rate_2 = self.key_and_rate(keys_PB)
        return x_BTD if key_B is None else counter.dropout(x_BTD, key_B, rate_2)

    def key_and_rate(self, keys_PB: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """What fused operations are given, key_B and the packed rate; no key where nothing is dropped."""
        return keys_PB[self.site] if keys_PB is not None and self.is_on else None, self.rate_2

    def head_keys(self, keys_PB: Tensor | None, num_heads: int) -> Tensor | None:
        """The keys of each row's heads, int64 [B, H]; None where nothing is dropped."""
        if keys_PB is None or not self.is_on:
            return None
        head_H = torch.arange(num_heads, device=keys_PB.device)
        return counter.fold(keys_PB[self.site][:, None], head_H)

    def forward_assignments(self, x_NF: Tensor, key_N: Tensor | None) -> Tensor:
        """Drop units of tokens on their way through experts, each of which brings a key along."""
        if key_N is None or not self.is_on:
            return x_NF
        return counter.dropout(x_NF[:, None], key_N, self.rate_2)[:, 0]

    def extra_repr(self) -> str:
        """Shown in the model's printout."""
        return f"rate={self.rate}, site={self.site.name}"


class BranchDropout(nn.Module):
    """Joins a branch to the residual stream, after dropping its units and then a row's whole branch.

    Args:
        units: Rate of the units.
        path: Rate of whole branches (DropPath, or stochastic depth).
        unit_site: Where the units' dropout falls.
        path_site: Where that of the branch falls.

    Source:
        Huang et al., "Deep networks with stochastic depth", 2016; here every layer has the same rate.
    """

    def __init__(
        self, units: Scheduled | float, path: Scheduled | float, unit_site: Site, path_site: Site
    ) -> None:
        super().__init__()
        self.units = Dropout(units, unit_site)
        self.path = Dropout(path, path_site)

    def forward(self, x_BTD: Tensor, branch_BTD: Tensor, keys_PB: Tensor | None) -> Tensor:
        """The stream with the branch; ``keys_PB`` are those of the layer's sites, None drops nothing."""
        return join(x_BTD, branch_BTD, self.drops(keys_PB))

    def drops(self, keys_PB: Tensor | None) -> Drops:
        """What is dropped of the branch, for an operation that also does what comes next."""
        return Drops(*self.units.key_and_rate(keys_PB), *self.path.key_and_rate(keys_PB))


def set_rates(model: nn.Module, progress: RunPosition) -> None:
    """Give every site the rate that it has in the step that begins there."""
    for module in model.modules():
        if isinstance(module, Dropout) and not module.schedule.is_constant:
            module.set_rate(module.schedule.at(progress))
