"""Routing statistics of a step over all ranks, and the expert bias that balances the load.

Shapes: L sparse layers in the order in which they run, E experts, S = 4 + E statistics of a layer
(see `reptrain.model.sparse.LayerRouting`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reptrain.model import Decoder, EncoderDecoder
from reptrain.model.sparse import NUM_LAYER_SUMS
from reptrain.runs.metrics import RoutingRecord


def routing_records(
    model: Decoder | EncoderDecoder, figure_LS: Sequence[Sequence[float]] | None, num_targets: int
) -> list[RoutingRecord] | None:
    """One record for each sparse layer; None for a dense model.

    Args:
        model: Gives the names of the layers.
        figure_LS: Sums over the whole step, on the host.
        num_targets: Divisor of the losses in the step.
    """
    if figure_LS is None:
        return None
    records = []
    for (name, _), figures in zip(model.sparse_layers(), figure_LS, strict=True):
        balance, z, dropped, assigned, *counts = figures
        assigned = max(assigned, 1.0)
        records.append(
            RoutingRecord(
                layer=name,
                balance=balance / num_targets,
                z=z / num_targets,
                dropped=dropped / assigned,
                load=max(counts) * len(counts) / assigned,
                unused=sum(count == 0 for count in counts),
            )
        )
    return records


@torch.no_grad()
def update_expert_bias(model: Decoder | EncoderDecoder, figure_LS: Tensor | None) -> None:
    """Raise the bias of each expert with less than its share of tokens, and lower that of the others.

    A layer that runs several times is updated once, from the sum.

    Args:
        model: The model; its expert biases change equally on every rank.
        figure_LS: Sums over the whole step.
    """
    if figure_LS is None:
        return
    counts: dict[torch.nn.Module, Tensor] = {}
    for (_, layer), figure_S in zip(model.sparse_layers(), figure_LS, strict=True):
        if layer.config.bias_rate > 0:
            counts[layer.router] = counts.get(layer.router, 0) + figure_S[NUM_LAYER_SUMS:]
    for router, count_E in counts.items():
        router.votes_E += (count_E.mean() - count_E).sign().long()
