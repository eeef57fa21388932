"""What the routers of a step did over all ranks: the records of it, and the bias that balances.

Shapes: L sparse layers in the order in which they run, E experts, S = 4 + E figures of a layer
(see `reptrain.model.sparse.LayerRouting`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from reptrain.model import Decoder, EncoderDecoder
from reptrain.runs.metrics import RoutingRecord


def routing_records(
    model: Decoder | EncoderDecoder, figure_LS: Tensor | None, num_targets: int
) -> list[RoutingRecord] | None:
    """One record for each sparse layer; None for a dense model.

    Args:
        model: Names the layers.
        figure_LS: Sums over the whole step.
        num_targets: Of the step: what the losses are divided by.
    """
    if figure_LS is None:
        return None
    records = []
    for (name, _), figures in zip(model.sparse_layers(), figure_LS.tolist(), strict=True):
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
def vote(model: Decoder | EncoderDecoder, figure_LS: Tensor | None) -> None:
    """Raise the selection bias of each expert that got less than its share, and lower that of one with more.

    A layer that runs several times votes once, on the sum.

    Args:
        model: Its routers' votes change, on every rank alike.
        figure_LS: Sums over the whole step.
    """
    if figure_LS is None:
        return
    counts: dict[torch.nn.Module, Tensor] = {}
    for (_, layer), figure_S in zip(model.sparse_layers(), figure_LS, strict=True):
        if layer.config.bias_rate > 0:
            counts[layer.router] = counts.get(layer.router, 0) + figure_S[4:]
    for router, count_E in counts.items():
        router.votes_E += (count_E.mean() - count_E).sign().long()
