"""The router: selects the experts of each token, and computes the losses that balance their load.

Shapes: B rows of a micro-batch, T positions, D width of the residual stream, E experts, K experts per token,
N = B T K assignments of a token to an expert, G routing groups of consecutive rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reptrain.config.model import MoEConfig
from reptrain.model.dropout import LayerKeys, Site
from reptrain_kernels import counter
from reptrain_kernels.ops.router import Routed, route


class RoutedTokens(NamedTuple):
    """Inputs of the sparse layers besides the states."""

    is_token_BT: Tensor
    """bool: False for padding, which is neither routed nor counted."""
    num_targets_B: Tensor | None
    """int64: number of targets in each row, the weight of its group's losses; None: compute no losses."""


class Choice(NamedTuple):
    """The experts of each token."""

    expert_BTK: Tensor
    """int64: index of the expert."""
    gate_BTK: Tensor
    """fp32: weight of each expert's output; 0 for padding and dropped assignments."""
    taken_BTK: Tensor
    """bool: the token is no padding, and the assignment is within the expert's capacity."""
    count_BE: Tensor
    """int64: number of a row's tokens that selected each expert, dropped ones included."""


class RouterLosses(NamedTuple):
    """One layer's losses per routing group, fp32, without their coefficients."""

    balance_G: Tensor
    """Load balancing loss, 1 if the load is uniform."""
    z_G: Tensor
    """Router z-loss: mean square of the logsumexp of the logits."""


def by_group(x_B: Tensor, group_windows: int) -> Tensor:
    """Sum over the rows of each group, [G, ...]; the last group may have fewer rows.

    >>> by_group(torch.tensor([1, 2, 3, 4, 5]), 2).tolist()
    [3, 7, 5]
    """
    num_missing = -x_B.shape[0] % group_windows
    padded = F.pad(x_B, (0, 0) * (x_B.ndim - 1) + (0, num_missing))
    return padded.unflatten(0, (-1, group_windows)).sum(1)


def expert_capacity(tokens_G: Tensor, num_experts: int, factor: float, minimum: int) -> Tensor:
    """Expert capacity: the most assignments that an expert accepts from each routing group, int64 [G].

    >>> expert_capacity(torch.tensor([4096, 20, 28]), 16, 1.25, 1).tolist()
    [320, 2, 2]

    Args:
        tokens_G: int64, number of tokens in each group.
        num_experts: E.
        factor: Capacity factor: 1 gives an expert tokens / num_experts assignments, for any top_k.
        minimum: Lower bound of the capacity.

    Source:
        Fedus et al., "Switch transformers", 2021, equation 3. Rounding to the nearest (half to even) and the
        minimum are those of flaxformer's `MoeLayer`.
    """
    return (factor * tokens_G.double() / num_experts).round().long().clamp(min=minimum)


class Router(nn.Module):
    """Scores each expert for each token in fp32, and selects the top K.

    Args:
        d_model: D.
        config: Configuration of the sparse layers.

    Source:
        Fedus et al., "Switch transformers", 2021 (jitter, balance loss); Zoph et al., "ST-MoE", 2022
        (z-loss); Wang et al., "Auxiliary-loss-free load balancing strategy for mixture-of-experts", 2024
        (expert bias).
    """

    votes_E: Tensor
    """int64: sum of the expert bias updates so far, each -1, 0 or 1. The bias is `bias_rate` times it."""

    def __init__(self, d_model: int, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.removed: int | None = None
        """An expert that no token may select, for evaluation; None: all experts take part."""
        self.weight = nn.Parameter(torch.empty(config.num_experts, d_model))
        # int64, because casting the model to bf16 would round a floating point buffer.
        self.register_buffer("votes_E", torch.zeros(config.num_experts, dtype=torch.int64))

    def forward(
        self, x_BTD: Tensor, is_token_BT: Tensor, keys: LayerKeys | None
    ) -> tuple[Choice, RouterLosses]:
        """Select the experts of each token.

        Args:
            x_BTD: Normalized states.
            is_token_BT: bool, False for padding.
            keys: Dropout keys of the layer, which key the jitter; None: no jitter.

        Returns:
            The experts, and the losses of each routing group.
        """
        # Autocast would round the logits.
        with torch.autocast(x_BTD.device.type, enabled=False):
            x_BTD = x_BTD.float()
            if keys is not None and self.config.jitter > 0:
                x_BTD = counter.jitter(x_BTD, keys.site_PB[Site.ROUTER], self.config.jitter)
            logit_BTE = x_BTD @ self.weight.float().T
        bias_E = self.config.bias_rate * self.votes_E
        if self.removed is not None:
            logit_BTE[..., self.removed] = -torch.inf
            bias_E[self.removed] = -torch.inf
        routed = route(
            logit_BTE,
            is_token_BT,
            bias_E,
            top_k=self.config.top_k,
            score=self.config.score,
            normalize=self.config.normalizes,
        )
        expert_BTK = routed.expert_BTK
        taken_BTK = is_token_BT[..., None].expand_as(expert_BTK)
        factor = self.config.capacity_factor
        if not self.training:
            factor = self.config.eval_capacity_factor or factor
        if factor is not None:
            taken_BTK = taken_BTK & self._within_capacity(expert_BTK, is_token_BT, factor)
        choice = Choice(expert_BTK, routed.gate_BTK * taken_BTK, taken_BTK, routed.count_BE)
        return choice, self._losses(routed, is_token_BT)

    def _within_capacity(self, expert_BTK: Tensor, is_token_BT: Tensor, factor: float) -> Tensor:
        """Whether an assignment is within its expert's capacity, bool [B, T, K].

        Tokens of a group take places in their order, so that no token is dropped because of a later one: a
        causal decoder must not depend on later tokens.
        """
        experts = self.config.num_experts
        tokens_G = by_group(is_token_BT.sum(1), self.config.group_windows)
        capacity_G = expert_capacity(tokens_G, experts, factor, self.config.min_capacity)
        group_B11 = torch.arange(len(expert_BTK), device=expert_BTK.device)[:, None, None]
        group_B11 = group_B11 // self.config.group_windows
        # Padding gets a bin of its own, after all others.
        padding_bin = len(tokens_G) * experts
        bin_N = (group_B11 * experts + expert_BTK).masked_fill(~is_token_BT[..., None], padding_bin).flatten()
        order_N = bin_N.argsort(stable=True)
        sorted_N = bin_N[order_N]
        rank_N = torch.arange(len(bin_N), device=bin_N.device) - torch.searchsorted(sorted_N, sorted_N)
        place_BTK = torch.empty_like(rank_N).scatter_(0, order_N, rank_N).view_as(expert_BTK)
        return place_BTK < capacity_G[group_B11]

    def _losses(self, routed: Routed, is_token_BT: Tensor) -> RouterLosses:
        sums = (routed.count_BE, routed.share_BE, routed.square_B, is_token_BT.sum(1))
        count_GE, share_GE, square_G, tokens_G = (by_group(x_B, self.config.group_windows) for x_B in sums)
        tokens_G = tokens_G.clamp(min=1)
        chosen_GE = count_GE / (tokens_G * self.config.top_k)[:, None]
        balance_G = self.config.num_experts * (chosen_GE * share_GE).sum(-1) / tokens_G
        return RouterLosses(balance_G, square_G / tokens_G)
