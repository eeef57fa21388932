"""Dropout whose masks are functions of (seed, site, step, global row, position, unit).

Shapes: B rows of a micro-batch, L layers, P sites of a layer, A of them for attention weights, H heads,
T positions, S keys, D units, N assignments of a token to an expert, F hidden units of an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reptrain.config.scheduled import RunPosition, Scheduled
from reptrain_kernels import counter, rates
from reptrain_kernels.ops.norm import Drops, join

# An upper bound of the sites of a layer.
_SITES_PER_LAYER = 16


class Site(IntEnum):
    """The dropout sites of a layer. 16 x layer + site keys the masks, so numbers never change."""

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
    MLP_OUTPUT = 14
    EXPERT_OUTPUT = 15


@dataclass(frozen=True, eq=False)
class DropoutContext:
    """What the masks of a forward pass depend on besides the site.

    The masks of a row are the same on any rank and in any micro-batch.
    """

    seed: int
    """Seed of the run."""
    step: int
    """Optimizer step."""
    row_B: Tensor
    """int64, on the model's device: index of each row in the step's global batch."""
    key_B: Tensor = field(init=False, repr=False)
    """int64: key of each row. Computed here, so that a new step does not recompile a compiled model."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key_B", counter.row_keys(self.seed, self.step, self.row_B))


class LayerKeys(NamedTuple):
    """The dropout keys of a layer.

    They are computed outside of the layer, so that a shared layer gets new masks each time it runs.
    """

    site_PB: Tensor
    """int64: the key of each site and row."""
    head_ABH: Tensor
    """int64: the keys of each row's heads, for the weights of self-attention and of cross-attention."""
    position_P: Tensor | None = None
    """int64: the positions of the layer's input, where it is a part of a sequence; None: all positions."""


_WEIGHTS_SITES = (Site.ATTENTION_WEIGHTS, Site.CROSS_WEIGHTS)


def site_keys(key_B: Tensor, first_layer: int, num_layers: int) -> Tensor:
    """The dropout keys of the sites of consecutive layers.

    Args:
        key_B: int64, key of each row (see `DropoutContext`).
        first_layer: Index of the first layer in the whole model.
        num_layers: L.

    Returns:
        int64 [L, P, B].
    """
    first = _SITES_PER_LAYER * first_layer
    site_LP = torch.arange(first, first + _SITES_PER_LAYER * num_layers, device=key_B.device)
    return counter.fold(key_B, site_LP[:, None]).unflatten(0, (num_layers, _SITES_PER_LAYER))


def layer_keys(
    key_B: Tensor | None, first_layer: int, num_layers: int, num_heads: int
) -> Sequence[LayerKeys | None]:
    """The dropout keys of consecutive layers, derived with few operations for any number of layers.

    Args:
        key_B: int64, key of each row (see `DropoutContext`); None: no dropout.
        first_layer: Index of the first layer in the whole model.
        num_layers: L.
        num_heads: H.

    Returns:
        The keys of each layer; None for each layer if ``key_B`` is None.
    """
    if key_B is None:
        return [None] * num_layers
    key_LPB = site_keys(key_B, first_layer, num_layers)
    weights_LAB = torch.stack([key_LPB[:, site] for site in _WEIGHTS_SITES], 1)
    head_LABH = counter.fold(weights_LAB[..., None], torch.arange(num_heads, device=key_B.device))
    return [LayerKeys(*keys) for keys in zip(key_LPB.unbind(), head_LABH.unbind(), strict=True)]


class Dropout(nn.Module):
    """Dropout at one site.

    Its rate is a plain tensor and no buffer: it stays on the CPU in float64 when the model moves, and no
    checkpoint holds it (see `rates.packed`).

    Args:
        rate: Probability of dropping a unit, in [0, 1). A scheduled rate keeps its first value until
            `set_rates` updates it.
        site: The site in the layer.

    Source:
        Srivastava et al., "Dropout: A simple way to prevent neural networks from overfitting", 2014.
    """

    def __init__(self, rate: Scheduled | float, site: Site) -> None:
        super().__init__()
        self.schedule = rate if isinstance(rate, Scheduled) else Scheduled(value=rate)
        self.set_rate(self.schedule.first)
        self.site = site

    def set_rate(self, rate: float) -> None:
        """Change the rate. A change from or to 0 recompiles a compiled model."""
        self.rate = rate
        self.is_on = rate > 0
        self.rate_2 = rates.packed(rate)

    def forward(self, x_BTD: Tensor, keys: LayerKeys | None) -> Tensor:
        """Drop units of each position.

        Args:
            x_BTD: Input.
            keys: Dropout keys of the layer; None returns ``x_BTD``.
        """
        key, rate_2 = self.key_and_rate(keys)
        return x_BTD if key is None else counter.dropout(x_BTD, key, rate_2)

    def mask_rows(self, x_BTD: Tensor, keys: LayerKeys | None) -> Tensor:
        """Drop whole vectors, with one draw (unit 0) for each position."""
        key, rate_2 = self.key_and_rate(keys)
        if key is None:
            return x_BTD
        return x_BTD * counter.dropout(x_BTD.new_ones(*x_BTD.shape[:2], 1), key, rate_2)

    def key_and_rate(self, keys: LayerKeys | None) -> tuple[Tensor | None, Tensor]:
        """Arguments of fused operations: the key, None without dropout, and the packed rate.

        The key is key_B, or of each position for a part of a sequence (see `counter.position_keys`).
        """
        key_B, rate_2 = self.row_key_and_rate(keys)
        if key_B is None or keys is None or keys.position_P is None:
            return key_B, rate_2
        return counter.position_keys(key_B, keys.position_P), rate_2

    def row_key_and_rate(self, keys: LayerKeys | None) -> tuple[Tensor | None, Tensor]:
        """The same for dropout of whole rows: key_B, None without dropout, and the packed rate."""
        return keys.site_PB[self.site] if keys is not None and self.is_on else None, self.rate_2

    def head_keys(self, keys: LayerKeys | None) -> Tensor | None:
        """The keys of each row's heads at a site of attention weights, int64 [B, H]; None: no dropout."""
        if keys is None or not self.is_on:
            return None
        return keys.head_ABH[_WEIGHTS_SITES.index(self.site)]

    def forward_assignments(self, x_NF: Tensor, key_N: Tensor | None) -> Tensor:
        """Drop hidden units of dispatched tokens; ``key_N`` keys each assignment, None: no dropout."""
        if key_N is None or not self.is_on:
            return x_NF
        return counter.dropout(x_NF[:, None], key_N, self.rate_2)[:, 0]

    def extra_repr(self) -> str:
        """The arguments that `repr` shows."""
        return f"rate={self.rate}, site={self.site.name}"


class BranchDropout(nn.Module):
    """A residual add with dropout of the branch's units, then of a row's whole branch (DropPath).

    Args:
        units: Dropout rate of the units.
        path: Dropout rate of whole branches.
        unit_site: Site of the units' dropout.
        path_site: Site of the branch's dropout.

    Source:
        Huang et al., "Deep networks with stochastic depth", 2016; here every layer has the same rate.
    """

    def __init__(
        self, units: Scheduled | float, path: Scheduled | float, unit_site: Site, path_site: Site
    ) -> None:
        super().__init__()
        self.units = Dropout(units, unit_site)
        self.path = Dropout(path, path_site)

    def forward(self, x_BTD: Tensor, branch_BTD: Tensor, keys: LayerKeys | None) -> Tensor:
        """Add the branch to the residual stream.

        Args:
            x_BTD: The residual stream.
            branch_BTD: Output of the branch.
            keys: Dropout keys of the layer; None: no dropout.
        """
        return join(x_BTD, branch_BTD, self.drops(keys))

    def drops(self, keys: LayerKeys | None) -> Drops:
        """Keys and rates of the branch's dropout, for a fused residual add and norm."""
        return Drops(*self.units.key_and_rate(keys), *self.path.row_key_and_rate(keys))


def set_rates(model: nn.Module, progress: RunPosition) -> None:
    """Update the scheduled dropout rates of a model.

    Args:
        model: Any model.
        progress: Start of the step.
    """
    for module in model.modules():
        if isinstance(module, Dropout) and not module.schedule.is_constant:
            module.set_rate(module.schedule.at(progress))
