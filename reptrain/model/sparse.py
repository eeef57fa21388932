"""The sparse layer: a router, its experts, and the way of the tokens there and back.

Shapes: B rows of a micro-batch, T positions, D width of the residual stream, E experts, K experts of a token,
N = B T K assignments, L sparse layers in the order in which they run, S = 4 + E figures of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reptrain.config.model import Activation, MoEConfig
from reptrain.config.scheduled import Scheduled
from reptrain.model.dispatch import Dispatch
from reptrain.model.dropout import Dropout, Site
from reptrain.model.experts import Experts
from reptrain.model.megablocks import MegaBlocksDispatch
from reptrain.model.mlp import MLP
from reptrain.model.router import Choice, RoutedTokens, Router, RouterLosses, by_group
from reptrain_kernels import counter
from reptrain_kernels.implementation import Implementation


class LayerRouting(NamedTuple):
    """What the router of one layer did."""

    loss_nats: Tensor
    """fp32: its losses, to be added to the sum of the nats."""
    figure_S: Tensor
    """fp64, without gradient, sums over groups or tokens: balance loss and z-loss, each times the targets of
    its group; assignments dropped; assignments; then the assignments of each expert, dropped ones too."""


@dataclass(eq=False)
class Routing:
    """What the routers of a forward pass did: made by the caller, filled by the model."""

    num_targets_B: Tensor
    """int64, the targets of each row."""
    loss_nats: Tensor | None = None
    """fp32: the losses of all layers, to be added to the sum of the nats; None for a dense model."""
    figure_LS: Tensor | None = None
    """fp64: see `LayerRouting`."""

    def fill(self, layers: list[LayerRouting]) -> None:
        """Take up what the layers did."""
        if layers:
            self.loss_nats = torch.stack([layer.loss_nats for layer in layers]).sum()
            self.figure_LS = torch.stack([layer.figure_S for layer in layers])


class SparseMLP(nn.Module):
    """Each token through its experts, and through the shared MLP where there is one.

    A group's losses are means over its tokens. They are weighted by its targets, as its nats are, so that
    over micro-batches and ranks both add up.

    Args:
        d_model: D.
        d_ff: Hidden units of the dense MLP, for where the sparse layers say nothing else.
        activation: swiglu and geglu are gated, relu is not.
        config: Of the sparse layers.
        dropout: Rate of the experts' hidden units.
        shared_dropout: Of the hidden units of the shared MLP.
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
    ) -> None:
        super().__init__()
        self.config = config
        self.router = Router(d_model, config)
        self.experts = Experts(
            d_model, config.d_ff or d_ff, activation=activation, config=config, dropout=dropout
        )
        self.shared = None
        if config.shared_d_ff:
            self.shared = MLP(d_model, config.shared_d_ff, activation=activation, dropout=shared_dropout)

    def forward(
        self, x_BTD: Tensor, keys_PB: Tensor | None, routed: RoutedTokens
    ) -> tuple[Tensor, LayerRouting | None]:
        """Transform each token.

        Args:
            x_BTD: The positions.
            keys_PB: Dropout keys of the layer's sites; None drops nothing.
            routed: What is known of the positions.

        Returns:
            y_BTD, zeros for padding, and what the router did where ``routed`` has targets.
        """
        choice, losses = self.router(x_BTD, routed.is_token_BT, keys_PB)
        y_BTD = self._through_experts(x_BTD, choice, keys_PB)
        if self.shared is not None:
            y_BTD = y_BTD + self.shared(x_BTD, keys_PB)
        if routed.num_targets_B is None:
            return y_BTD, None
        return y_BTD, self._sum_up(choice, losses, routed.is_token_BT, routed.num_targets_B)

    def _through_experts(self, x_BTD: Tensor, choice: Choice, keys_PB: Tensor | None) -> Tensor:
        experts = self.config.num_experts
        if self.config.backend == "megablocks":
            dispatch: Dispatch = MegaBlocksDispatch(choice.expert_BTK, experts)
        else:
            # The plain reference stays plain on every device.
            impl: Implementation | None = "torch" if self.config.backend == "loop" else None
            dispatch = Dispatch(choice.expert_BTK, experts, impl=impl)
        key_N = None if keys_PB is None else self._keys(choice.expert_BTK, keys_PB)[dispatch.order_N]
        y_ND = self.experts(dispatch.send(x_BTD), dispatch.count_E, key_N)
        return dispatch.collect(y_ND, choice.gate_BTK)

    def _keys(self, expert_BTK: Tensor, keys_PB: Tensor) -> Tensor:
        """A key for each assignment, int64 [N], folded from the row's, the slot among the token's experts and
        the position, so that dispatch takes the identity of a token along."""
        _, positions, slots = expert_BTK.shape
        position_T, slot_K = (torch.arange(n, device=keys_PB.device) for n in (positions, slots))
        key_BK = counter.fold(keys_PB[Site.EXPERT_HIDDEN][:, None], slot_K)
        return counter.fold(key_BK[:, None], position_T[:, None]).flatten()

    def _sum_up(
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


def build_mlp(
    d_model: int,
    d_ff: int,
    *,
    activation: Activation,
    sparse: MoEConfig | None,
    dropout: Scheduled | float,
    expert_dropout: Scheduled | float,
    bias: bool = False,
) -> MLP | SparseMLP:
    """The MLP of a layer: dense, or sparse where it is told how."""
    hidden_dropout = Dropout(dropout, Site.MLP_HIDDEN)
    if sparse is None:
        return MLP(d_model, d_ff, activation=activation, dropout=hidden_dropout, bias=bias)
    return SparseMLP(
        d_model,
        d_ff,
        activation=activation,
        config=sparse,
        dropout=expert_dropout,
        shared_dropout=hidden_dropout,
    )


def transform(
    mlp: MLP | SparseMLP, x_BTD: Tensor, keys_PB: Tensor | None, routed: RoutedTokens
) -> tuple[Tensor, LayerRouting | None]:
    """Pass positions through the MLP of a layer, whichever it is."""
    if isinstance(mlp, SparseMLP):
        return mlp(x_BTD, keys_PB, routed)
    return mlp(x_BTD, keys_PB), None
