"""The MLPs of layers, dense or sparse. A sparse one is a router, its experts, dispatch and combine.

Shapes: B rows of a micro-batch, T positions, D width of the residual stream, E experts, K experts per token,
N = B T K assignments of a token to an expert, G routing groups, L sparse layers in execution order,
S = 4 + E statistics of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reptrain.config.model import Activation, ModelConfig, MoEConfig
from reptrain.config.scheduled import Scheduled
from reptrain.model.dispatch import Dispatch
from reptrain.model.dropout import Dropout, LayerKeys, Site
from reptrain.model.experts import Experts
from reptrain.model.megablocks import MegaBlocksDispatch
from reptrain.model.mlp import MLP
from reptrain.model.router import Choice, RoutedTokens, Router, RouterLosses, by_group
from reptrain_kernels import counter
from reptrain_kernels.implementation import Implementation

NUM_LAYER_SUMS = 4
"""Statistics of a layer before the numbers of assignments of each expert (see `LayerRouting.figure_S`)."""


class LayerRouting(NamedTuple):
    """Losses and statistics of one layer's router."""

    loss_nats: Tensor
    """fp32 scalar: the router losses, weighted by targets, to add to the summed loss."""
    figure_S: Tensor
    """fp64, no gradient, sums over the micro-batch: balance loss and z-loss, each times the targets of its
    group; number of dropped assignments; number of assignments; number of assignments of each expert, dropped
    ones included."""


@dataclass(eq=False)
class Routing:
    """Losses and statistics of all routers in a forward pass: the caller creates it, the model fills it."""

    num_targets_B: Tensor
    """int64: number of targets in each row."""
    loss_nats: Tensor | None = None
    """fp32 scalar: the router losses of all layers, to add to the summed loss; None for a dense model."""
    figure_LS: Tensor | None = None
    """fp64: statistics of each layer (see `LayerRouting.figure_S`); None for a dense model."""

    def fill(self, layers: list[LayerRouting]) -> None:
        """Store the results of the layers."""
        if layers:
            self.loss_nats = torch.stack([layer.loss_nats for layer in layers]).sum()
            self.figure_LS = torch.stack([layer.figure_S for layer in layers])


class SparseMLP(nn.Module):
    """A mixture of experts, and an optional shared MLP that every token passes through.

    Router losses are means over the tokens of a routing group. Each is weighted by its group's targets, so
    that it adds up over micro-batches and ranks as the model's loss does.

    Args:
        d_model: D.
        d_ff: Hidden units of an expert if ``config`` has no `d_ff`.
        activation: Activation of the hidden units, gated or not.
        config: Configuration of the sparse layers.
        dropout: Dropout rate of the experts' hidden units.
        shared_dropout: Dropout of the shared MLP's hidden units.
        expert_mask: Rate of masking the output of an expert for a token.
        output_mask: Rate of masking the output of the layer at a position.

    Source:
        Fedus et al., "Switch transformers", 2021 (the layer); Dai et al., "DeepSeekMoE", 2024, section
        3.2 (the shared expert).
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: Activation,
        config: MoEConfig,
        dropout: Scheduled | float,
        shared_dropout: Dropout,
        expert_mask: Scheduled | float = 0.0,
        output_mask: Scheduled | float = 0.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.router = Router(d_model, config)
        self.experts = Experts(
            d_model, config.d_ff or d_ff, activation=activation, config=config, dropout=dropout
        )
        self.expert_mask = Dropout(expert_mask, Site.EXPERT_OUTPUT)
        self.output_mask = Dropout(output_mask, Site.MLP_OUTPUT)
        self.shared = None
        if config.shared_d_ff:
            self.shared = MLP(d_model, config.shared_d_ff, activation=activation, dropout=shared_dropout)

    def forward(
        self, x_BTD: Tensor, keys: LayerKeys | None, routed: RoutedTokens
    ) -> tuple[Tensor, LayerRouting | None]:
        """Transform each token.

        Args:
            x_BTD: Normalized states.
            keys: Dropout keys of the layer; None: no dropout.
            routed: Which positions are tokens, and the targets of each row.

        Returns:
            y_BTD, the experts' part 0 for padding; and the router's losses and statistics, None if ``routed``
            has no targets.
        """
        choice, losses = self.router(x_BTD, routed.is_token_BT, keys)
        y_BTD = self._through_experts(x_BTD, choice, keys)
        if self.shared is not None:
            y_BTD = y_BTD + self.shared(x_BTD, keys)
        y_BTD = self.output_mask.mask_rows(y_BTD, keys)
        if routed.num_targets_B is None:
            return y_BTD, None
        return y_BTD, self._layer_routing(choice, losses, routed.is_token_BT, routed.num_targets_B)

    def _through_experts(self, x_BTD: Tensor, choice: Choice, keys: LayerKeys | None) -> Tensor:
        experts = self.config.num_experts
        if self.config.backend == "megablocks":
            dispatch: Dispatch = MegaBlocksDispatch(choice.expert_BTK, experts)
        else:
            # The loop backend is the reference: plain torch on every device.
            impl: Implementation | None = "torch" if self.config.backend == "loop" else None
            dispatch = Dispatch(choice.expert_BTK, experts, impl=impl)
        key_N = None
        if keys is not None and self.experts.dropout.is_on:
            key_N = self._assignment_keys(choice.expert_BTK, keys)[dispatch.order_N]
        y_ND = self.experts(dispatch.dispatch(x_BTD), dispatch.count_E, key_N)
        # Masking the gate of a token's expert masks the output of the expert.
        return dispatch.combine(y_ND, self.expert_mask(choice.gate_BTK, keys))

    def _assignment_keys(self, expert_BTK: Tensor, keys: LayerKeys) -> Tensor:
        """Dropout key of each assignment, int64 [N]: a function of row, slot among the token's experts, and
        position, not of the place after dispatch."""
        _, positions, slots = expert_BTK.shape
        position_T, slot_K = (torch.arange(n, device=keys.site_PB.device) for n in (positions, slots))
        key_BK = counter.fold(keys.site_PB[Site.EXPERT_HIDDEN][:, None], slot_K)
        return counter.fold(key_BK[:, None], position_T[:, None]).flatten()

    def _layer_routing(
        self, choice: Choice, losses: RouterLosses, is_token_BT: Tensor, num_targets_B: Tensor
    ) -> LayerRouting:
        config = self.config
        targets_G = by_group(num_targets_B, config.group_windows)
        balance, z = (losses.balance_G * targets_G).sum(), (losses.z_G * targets_G).sum()
        routed_BTK = is_token_BT[..., None].expand_as(choice.taken_BTK)
        count_E = choice.count_BE.sum(0)
        dropped = (routed_BTK & ~choice.taken_BTK).sum()
        figures = (balance.detach(), z.detach(), dropped, count_E.sum())
        return LayerRouting(
            config.balance_coefficient * balance + config.z_coefficient * z,
            torch.cat([torch.stack([figure.double() for figure in figures]), count_E.double()]),
        )


def build_mlp(config: ModelConfig, sparse: MoEConfig | None, *, bias: bool = False) -> MLP | SparseMLP:
    """The MLP of a layer.

    Args:
        config: The model.
        sparse: Configuration of a sparse MLP; None: a dense MLP.
        bias: Whether each projection of a dense MLP has a bias.
    """
    hidden_dropout = Dropout(config.dropout.mlp, Site.MLP_HIDDEN)
    if sparse is None:
        return MLP(
            config.d_model,
            config.d_ff,
            activation=config.mlp,
            dropout=hidden_dropout,
            output_mask=Dropout(config.dropout.mlp_output, Site.MLP_OUTPUT),
            bias=bias,
        )
    return SparseMLP(
        config.d_model,
        config.d_ff,
        activation=config.mlp,
        config=sparse,
        dropout=config.dropout.expert,
        shared_dropout=hidden_dropout,
        expert_mask=config.dropout.expert_output,
        output_mask=config.dropout.mlp_output,
    )


def transform(
    mlp: MLP | SparseMLP, x_BTD: Tensor, keys: LayerKeys | None, routed: RoutedTokens
) -> tuple[Tensor, LayerRouting | None]:
    """Apply the MLP of a layer: y_BTD, and the routing of a sparse one (see `SparseMLP.forward`)."""
    if isinstance(mlp, SparseMLP):
        return mlp(x_BTD, keys, routed)
    return mlp(x_BTD, keys), None
