"""Scores of a model on windows, in evaluation mode.

Shapes: B rows, T positions, V ids, L sparse layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reptrain.batch.collate import MicroBatch
from reptrain.batch.objectives import Objective
from reptrain.distributed.engine import Engine
from reptrain.distributed.world import World
from reptrain.model import Decoder, EncoderDecoder, Routing
from reptrain.model.sparse import NUM_LAYER_SUMS
from reptrain_kernels.ops.linear_cross_entropy import Targets


@dataclass(frozen=True)
class Score:
    """Sums over a set of windows, the same on every rank."""

    nats: float
    loss_tokens: int
    """Number of tokens that the nats cover: `tokens`, or more where the nats are a bound (ELBO)."""
    text_bytes: float
    """UTF-8 bytes of the scored text; sentinels and EOS count as zero."""
    correct: int
    """Scored tokens that the model ranks first."""
    tokens: int
    """Scored tokens."""
    raw_correct: int
    """`correct` for the window's own tokens: without sentinels and the EOS at the end of an example."""
    raw_tokens: int
    """`tokens` for the window's own tokens."""
    expert_counts: Sequence[Sequence[int]] = ()
    """Tokens that select each expert, by sparse layer in execution order; empty for a dense model."""

    @property
    def nats_per_token(self) -> float:
        """The loss in nats per token."""
        return self.nats / self.loss_tokens


@torch.no_grad()
def score(
    engine: Engine | nn.Module,
    micro_batches: Sequence[MicroBatch],
    *,
    world: World,
    objective: Objective,
    byte_length_V: Tensor,
) -> Score:
    """Sum nats and correct predictions over the windows of all ranks.

    Args:
        engine: The engine around the model, or the model, in evaluation mode.
        micro_batches: This rank's windows; the same number on every rank (ZeRO-3 gathers weights together).
        world: The ranks.
        objective: The objective that turns windows into examples.
        byte_length_V: float64, UTF-8 bytes of text for each id.
    """
    byte_length_V = byte_length_V.to(world.device)
    sums = torch.zeros(7, dtype=torch.float64, device=world.device)
    count_LE: Tensor | None = None
    for micro_batch in micro_batches:
        batch = micro_batch.to(world.device)
        example = objective.example(batch)
        routing = Routing(example.loss_tokens_B) if _is_sparse(engine) else None
        observed = {} if routing is None else {"routing": routing}
        loss = engine(**example.inputs, targets=Targets(example.targets_BT), **observed)
        if routing is not None and routing.figure_LS is not None:
            more_LE = routing.figure_LS[:, NUM_LAYER_SUMS:]
            count_LE = more_LE if count_LE is None else count_LE + more_LE
        is_scored_BT, is_raw_BT = example.is_scored_BT, example.is_raw_BT
        nats = example.weighted(loss.nats).double().sum()
        figures = [nats, loss.is_correct.sum(), (loss.is_correct & is_raw_BT).sum()]
        if world.counts_rows:
            text_bytes = example.text_bytes(batch, byte_length_V)
            figures += [text_bytes, example.loss_tokens_B.sum(), is_scored_BT.sum(), is_raw_BT.sum()]
        sums[: len(figures)] += torch.stack([figure.double() for figure in figures])
    nats, correct, raw_correct, text_bytes, *counts = world.sum(sums).tolist()
    experts = [] if count_LE is None else world.sum(count_LE).long().tolist()
    loss_tokens, tokens, raw_tokens = map(int, counts)
    return Score(nats, loss_tokens, text_bytes, int(correct), tokens, int(raw_correct), raw_tokens, experts)


def _is_sparse(engine: Engine | nn.Module) -> bool:
    """Whether the model has experts; an ensemble has none of its own."""
    model = getattr(engine, "module", engine)
    return isinstance(model, Decoder | EncoderDecoder) and bool(model.sparse_layers())
