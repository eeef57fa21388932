"""One optimizer step: forward, backward, update.

The loss of a step is the sum of nats over all ranks and micro-batches divided by the step's target tokens,
never a mean of means. Micro-batches and ranks therefore change the results by rounding only.

B: rows; T: positions; L: sparse layers; S: statistics of a sparse layer.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from reptrain.batch.collate import MicroBatch
from reptrain.batch.digest import batch_digest
from reptrain.batch.objectives import Example
from reptrain.checkpoint.state import update_count
from reptrain.checkpoint.state_hash import WeightSlices
from reptrain.checkpoint.weight_average import WeightAverage
from reptrain.config.optimizers import OptimizerConfig, ScheduleConfig
from reptrain.config.sections import RegularizeConfig
from reptrain.distributed.engine import Engine
from reptrain.distributed.host_memory import release_freed_memory
from reptrain.distributed.world import World
from reptrain.model import DropoutContext, Routing, Witness
from reptrain.runs.metrics import RoutingRecord
from reptrain.training.batches import Batch
from reptrain.training.distill import Teacher
from reptrain.training.load_balance import routing_records, update_expert_bias
from reptrain.training.masked_inputs import MaskedInputs, doubled
from reptrain.training.regularize import InputNoise, Settings
from reptrain.training.targets import targets_of


@dataclass(frozen=True)
class Trainer:
    """What every step uses: the model under DeepSpeed, and the settings that change from step to step."""

    engine: Engine
    world: World
    seed: int
    """Keys the dropout masks, with the step."""
    make_example: Callable[[MicroBatch], Example]
    """The objective: model inputs and targets of a micro-batch."""
    input_noise: InputNoise
    masked_inputs: MaskedInputs
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    regularize: RegularizeConfig
    slices: WeightSlices | None = None
    """Slices of the weights that the steps hash in turn; None hashes none."""
    average: WeightAverage | None = None
    """Average of the weights, updated after each applied step."""
    teacher: Teacher | None = None
    """Gives the distribution that each step imitates; None without distillation."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What follows a step whose loss or gradient is not finite."""


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step, the same on every rank."""

    loss_nats: float
    """Nats per token, before the update."""
    input_tokens: int
    """Tokens that are inputs only, over all ranks."""
    target_tokens: int
    """Tokens predicted, over all ranks."""
    ledger_targets: int
    """Positions with a target in the forward passes, over all ranks, including those of masked copies."""
    digest: int
    """Unsigned 64-bit digest of the raw windows on the device, over all ranks."""
    input_digest: int
    """Input digest (docs/format.md) over all ranks, unsigned 64-bit."""
    grad_norm: float | None
    """L2 norm of the whole gradient before clipping; infinite or NaN if the gradient is not finite."""
    applied: bool
    """Whether the optimizer changed the weights."""
    optimizer_step: int | None
    """Updates of the weights so far; None for an optimizer that does not count them."""
    slice_hashes: tuple[int, int] | None
    """Unsigned 64-bit hash of the step's slice of the weights before and after the update."""
    routing: list[RoutingRecord] | None = None
    """Statistics of the sparse layers; None for a dense model."""


def train_step(trainer: Trainer, batch: Batch, settings: Settings) -> StepResult:
    """Forward, backward and update for one global batch.

    Args:
        trainer: The model under DeepSpeed.
        batch: This rank's share.
        settings: Values of the regularizers in this step.

    Returns:
        The same result on every rank. If the loss or the gradient is not finite on any rank, no rank updates.
    """
    engine, world = trainer.engine, trainer.world
    sums = _accumulate(trainer, batch, settings)
    if world.device.type == "cpu" and engine.zero_optimization_stage() > 0:
        # The update copies all gradients once more.
        release_freed_memory()
    slice_watch = trainer.slices.begin(batch.step) if trainer.slices else None
    grad_norm, applied = _update(engine)
    hashes = torch.zeros_like(sums.counts[:2]) if slice_watch is None else slice_watch.hashes()
    # Every rank counts the updates; the main one reports.
    updates = update_count(engine)
    if not world.is_main or updates is None:
        updates = torch.full((), -1 if world.is_main else 0)
    counts = world.sum(torch.cat([sums.counts, hashes, updates.to(sums.counts).reshape(1)]))
    stats_LS = None if sums.stats_LS is None else world.sum(sums.stats_LS)
    if applied:
        update_expert_bias(engine.module, stats_LS)
    read = _read(counts, sums.nats, grad_norm, stats_LS)
    digest, input_digest, input_tokens, target_tokens, before, after, updated = read.counts
    return StepResult(
        loss_nats=read.nats / batch.loss_tokens,
        input_tokens=input_tokens,
        # A masked copy has as many targets as its row.
        target_tokens=target_tokens // 2 if settings.masked_inputs > 0 else target_tokens,
        ledger_targets=target_tokens,
        digest=digest % 2**64,
        input_digest=input_digest % 2**64,
        grad_norm=read.grad_norm,
        applied=applied,
        optimizer_step=updated if updated >= 0 else None,
        slice_hashes=None if slice_watch is None else (before % 2**64, after % 2**64),
        routing=routing_records(engine.module, read.stats_LS, batch.loss_tokens),
    )


class _Sums(NamedTuple):
    """The sums over the micro-batches of a step."""

    nats: Tensor
    """float64 scalar, the weighted sum of the reported losses over all ranks."""
    counts: Tensor
    """int64 [4], of this rank: the digests of windows and inputs, the input tokens and the target tokens."""
    stats_LS: Tensor | None
    """Statistics of the routers on this rank; None for a dense model."""


def _accumulate(trainer: Trainer, batch: Batch, settings: Settings) -> _Sums:
    """Accumulate the gradient: forward and backward for each micro-batch."""
    engine, world = trainer.engine, trainer.world
    nats = torch.zeros((), dtype=torch.float64, device=world.device)
    counts = torch.zeros(4, dtype=torch.int64, device=world.device)
    stats_LS: Tensor | None = None
    # The head computes its fp16 gradients together with the loss, so the loss scale must be applied by then.
    loss_scale = engine.optimizer.loss_scale if engine.fp16_enabled() else 1.0
    # DeepSpeed averages gradients over ranks; world_size turns that into the sum over ranks.
    scale = world.world_size / batch.loss_tokens
    loss_factor = torch.tensor(scale * loss_scale, dtype=torch.float64)
    finite = torch.ones((), device=world.device)
    for number, micro_batch in enumerate(batch.micro_batches, start=1):
        if number > 1:
            engine.step()  # Ends the previous micro-batch; the weights change after the last one only.
        forward = _forward(trainer, batch, micro_batch.to(world.device), settings, loss_factor)
        counts += forward.counts
        nats += forward.nats
        loss, routing = forward.loss / loss_scale, forward.routing
        if routing.loss_nats is not None:
            loss = loss + routing.loss_nats * scale
            stats_LS = routing.figure_LS if stats_LS is None else stats_LS + routing.figure_LS
        if number == len(batch.micro_batches):
            nats = world.sum(nats)
            # 1, or NaN if the loss is not finite on some rank: then no rank has a finite gradient.
            finite = finite + (0 * nats).float()
        engine.backward(loss * finite, scale_wrt_gas=False)
    return _Sums(nats, counts, stats_LS)


class _Forward(NamedTuple):
    """The results of the forward pass of a micro-batch."""

    loss: Tensor
    """The loss that is differentiated, without those of routing, times the loss factor."""
    nats: Tensor
    """float64, the weighted sum of the reported losses."""
    counts: Tensor
    """int64 [4]: the digests of windows and inputs, the input tokens and the target tokens."""
    routing: Routing


def _forward(
    trainer: Trainer, batch: Batch, rows: MicroBatch, settings: Settings, loss_factor: Tensor
) -> _Forward:
    example = trainer.make_example(rows)
    dropout = DropoutContext(seed=trainer.seed, step=batch.step, row_B=rows.row_B)
    inputs = trainer.input_noise(example.inputs, settings.input_noise, dropout)
    example = replace(example, inputs=inputs)
    index_B = batch.first_index + rows.row_B
    if settings.masked_inputs > 0:
        example = trainer.masked_inputs(example, settings.masked_inputs, dropout)
        dropout, index_B = doubled(dropout), torch.cat([index_B, index_B])
    imitated = None
    if trainer.teacher is not None:
        imitated = trainer.teacher.distribution(example.inputs, batch.position)
    routing = Routing(example.loss_tokens_B)
    witness = Witness(index_B)
    output = trainer.engine(
        **example.inputs,
        dropout=dropout,
        routing=routing,
        targets=targets_of(example, settings),
        loss_factor=loss_factor,
        witness=witness,
        imitated=imitated,
    )
    assert witness.digest is not None and witness.num_targets is not None
    # Ranks with the same rows all have these; the witness of each has its own positions only.
    once = int(trainer.world.counts_rows)
    counts = torch.stack(
        [
            once * batch_digest(rows),
            witness.digest,
            once * example.num_inputs_B.sum(),
            witness.num_targets,
        ]
    )
    # Without the masked copies, which follow the rows.
    nats = example.weighted(output.nats)[: len(rows.row_B)].sum().double()
    return _Forward(output.loss, nats, counts, routing)


class _Read(NamedTuple):
    """The figures of a step on the host."""

    counts: list[int]
    nats: float
    grad_norm: float | None
    stats_LS: list[list[float]] | None


def _read(counts: Tensor, nats: Tensor, grad_norm: Tensor | float | None, stats_LS: Tensor | None) -> _Read:
    """Copy the figures of a step to the host in one copy, after all operations have been launched."""
    on_device = isinstance(grad_norm, Tensor)
    floats = [nats.double().reshape(1)]
    if isinstance(grad_norm, Tensor):
        floats.append(grad_norm.to(nats).reshape(1))
    if stats_LS is not None:
        floats.append(stats_LS.double().flatten())
    # The floats are copied as int64 bits, since the counts need all of their 64 bits.
    copied = torch.cat([counts, torch.cat(floats).view(torch.int64)]).tolist()
    bits = copied[len(counts) :]
    nats_read, *others = struct.unpack(f"{len(bits)}d", struct.pack(f"{len(bits)}q", *bits))
    norm_read = others.pop(0) if on_device else grad_norm
    rows = None
    if stats_LS is not None:
        num_stats = stats_LS.shape[1]
        rows = [others[first : first + num_stats] for first in range(0, len(others), num_stats)]
    return _Read(copied[: len(counts)], nats_read, norm_read, rows)


def _update(engine: Engine) -> tuple[Tensor | float | None, bool]:
    """Update the weights if the gradient is finite; returns its norm, and whether the weights changed.

    ZeRO and fp16 check the gradient themselves, on all ranks; for fp32 at stage 0 this function does.
    """
    norm = _plain_grad_norm(engine)
    if norm is not None and not math.isfinite(norm):
        engine.zero_grad()
        # As `engine.step` does: DeepSpeed recognizes the last micro-batch of a step by this count.
        engine.micro_steps += 1
        return norm, False
    engine.step()
    return engine.get_global_grad_norm() if norm is None else norm, engine.was_step_applied()


def _plain_grad_norm(engine: Engine) -> float | None:
    """Norm of the reduced gradient at ZeRO stage 0, where DeepSpeed keeps none; None elsewhere."""
    if engine.zero_optimization_stage() > 0 or engine.fp16_enabled():
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))
