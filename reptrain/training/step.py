"""One optimizer step: forward, backward, update.

The loss of a step is the sum of nats over all ranks and micro-batches divided by the step's target tokens,
never a mean of means; so micro-batches and ranks change nothing but rounding.

B: rows; T: positions; L: sparse layers; S: figures of a sparse layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reptrain.batch.collate import MicroBatch
from reptrain.batch.digest import batch_digest
from reptrain.batch.objectives import Objective
from reptrain.distributed.world import World
from reptrain.model import DropoutContext, Routing
from reptrain.runs.metrics import RoutingRecord
from reptrain.training.load_balance import routing_records, vote
from reptrain.training.regularize import InputNoise, Settings
from reptrain.training.targets import targets_of


@dataclass(frozen=True)
class StepResult:
    """What a step did, the same on every rank."""

    loss_nats: float
    """Nats per token, before the step."""
    input_tokens: int
    """Tokens read and not predicted, over all ranks."""
    target_tokens: int
    """Tokens predicted."""
    digest: int
    """Unsigned 64-bit digest of what the forward passes saw, over all ranks."""
    grad_norm: float | None
    """L2 norm of the whole gradient before clipping; infinite or NaN where the gradient is not finite."""
    applied: bool
    """Whether the optimizer changed the weights."""
    routing: list[RoutingRecord] | None = None
    """What the sparse layers did; None for a dense model."""


def train_step(
    engine: Any,
    micro_batches: Sequence[MicroBatch],
    *,
    world: World,
    seed: int,
    step: int,
    loss_tokens: int,
    objective: Objective,
    settings: Settings,
    input_noise: InputNoise,
) -> StepResult:
    """Forward, backward and update for one global batch.

    Args:
        engine: DeepSpeed's engine around the model.
        micro_batches: This rank's share; as many as DeepSpeed's accumulation steps.
        world: The ranks.
        seed: Keys the dropout masks, with ``step``.
        step: The step's number, from 0.
        loss_tokens: The divisor of the step's nats over all ranks: the tokens that they tell.
        objective: Makes examples of windows.
        settings: The regularizers' values.
        input_noise: Replaces what the model reads, at the rate of ``settings``.

    Returns:
        The same result on every rank. A loss or gradient that is not finite on some rank is applied on none.
    """
    nats = torch.zeros((), dtype=torch.float64, device=world.device)
    # The digest, and how many tokens were read and predicted.
    counts = torch.zeros(3, dtype=torch.int64, device=world.device)
    figure_LS: Tensor | None = None
    # fp16's gradients of the head are computed with the loss, and must be scaled by then.
    loss_scale = engine.optimizer.loss_scale if engine.fp16_enabled() else 1.0
    # DeepSpeed averages gradients over ranks; world_size turns that into the sum over ranks.
    scale = world.world_size / loss_tokens
    finite = torch.ones((), device=world.device)
    for place, micro_batch in enumerate(micro_batches):
        if place:
            engine.step()  # Counts the micro-batch before; the weights change at the last one alone.
        batch = micro_batch.to(world.device)
        example = objective.example(batch)
        counts += torch.stack([batch_digest(batch), example.num_inputs_B.sum(), example.is_scored_BT.sum()])
        dropout = DropoutContext(seed=seed, step=step, row_B=batch.row_B)
        routing = Routing(example.loss_tokens_B)
        inputs = input_noise(example.inputs, settings.input_noise, dropout)
        targets = targets_of(example, settings, factor=scale * loss_scale)
        found = engine(**inputs, dropout=dropout, routing=routing, targets=targets)
        nats += example.weighted(found.nats).sum().double()
        loss = found.loss / loss_scale
        if routing.loss_nats is not None:
            loss = loss + routing.loss_nats * scale
            figure_LS = routing.figure_LS if figure_LS is None else figure_LS + routing.figure_LS
        if place == len(micro_batches) - 1:
            nats = world.sum(nats)
            # 1, or NaN where some rank's loss is not finite: then no rank has a finite gradient.
            finite = finite + (0 * nats).float()
        engine.backward(loss * finite, scale_wrt_gas=False)
    digest, input_tokens, target_tokens = world.sum(counts).tolist()
    norm, applied = _apply(engine)
    if figure_LS is not None:
        figure_LS = world.sum(figure_LS)
    if applied:
        vote(engine.module, figure_LS)
    return StepResult(
        loss_nats=nats.item() / loss_tokens,
        input_tokens=input_tokens,
        target_tokens=target_tokens,
        digest=digest % 2**64,
        grad_norm=norm,
        applied=applied,
        routing=routing_records(engine.module, figure_LS, loss_tokens),
    )


def _apply(engine: Any) -> tuple[float | None, bool]:
    """The optimizer's step, unless the gradient is not finite: its norm, and whether weights changed.

    ZeRO and fp16 look at the gradient themselves, on all ranks; plain fp32 at stage 0 is looked at here.
    """
    norm = _plain_grad_norm(engine)
    if norm is not None and not math.isfinite(norm):
        engine.zero_grad()
        # As a step would: DeepSpeed tells the last micro-batch of a step by this count.
        engine.micro_steps += 1
        return norm, False
    engine.step()
    norm = engine.get_global_grad_norm() if norm is None else norm
    return None if norm is None else float(norm), engine.was_step_applied()


def _plain_grad_norm(engine: Any) -> float | None:
    """The gradient's norm at ZeRO stage 0, where DeepSpeed keeps none; gradients are reduced by now."""
    if engine.zero_optimization_stage() > 0 or engine.fp16_enabled():
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))
