"""The training loop of pre-training and fine-tuning, and `train`, which pre-trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from reptrain.config import RunConfig
from reptrain.config.schedule import step_learning_rate
from reptrain.distributed.precision import check_precision
from reptrain.distributed.stop import StopRequest, stop_requests
from reptrain.distributed.world import (
    World,
    check_expert_parallel,
    choose_device,
    describe,
    join,
)
from reptrain.hub.saved_model import SavedModel
from reptrain.model.dropout import set_rates
from reptrain.model.megablocks import require_megablocks
from reptrain.runs.folder import RunFolder
from reptrain.training.batches import Batch, Batches
from reptrain.training.failures import failures_recorded
from reptrain.training.hooks import Hooks, Request
from reptrain.training.init_from import open_parent, record_parent, weights_at
from reptrain.training.optimizers import set_learning_rate
from reptrain.training.pretraining import Pretraining
from reptrain.training.recorder import print_line, stated_attention
from reptrain.training.regularize import Settings, set_weight_decay
from reptrain.training.setup import Data, open_data, prepare
from reptrain.training.step import StepResult, Trainer, train_step
from reptrain.training.summary import run_header


class LoopEnd(NamedTuple):
    """Where the loop stopped."""

    steps: int
    """Completed steps, those before this call included."""
    reason: str | None
    """The request to stop; None if there was none."""


def run_steps(
    trainer: Trainer, batches: Batches, hooks: Hooks, *, first_step: int, stop: StopRequest
) -> LoopEnd:
    """Train from ``first_step`` to the end of the batches, or until a request to stop.

    Args:
        trainer: The model under DeepSpeed.
        batches: The batches by step.
        hooks: Records, evaluates and saves.
        first_step: Steps completed before.
        stop: Requests of signals and time limits; the ranks agree on them after every step.
    """
    done, reason = first_step, None
    began = time.perf_counter()
    for batch in batches.iterate(first_step):
        _take_step(trainer, batch, hooks, waited_s=time.perf_counter() - began)
        done = batch.step + 1
        reason = stop.reason(trainer.world)
        request = hooks.evaluate(done) if done in hooks.evaluate_at else Request()
        ends = bool(reason or request.stop)
        if ends or request.save or done in hooks.save_at:
            hooks.save(done)
        if ends:
            break
        began = time.perf_counter()
    return LoopEnd(done, reason)


def _take_step(trainer: Trainer, batch: Batch, hooks: Hooks, *, waited_s: float) -> None:
    """One step, repeated while only the fp16 loss scale is too large.

    Args:
        trainer: The model under DeepSpeed.
        batch: The batch of the step.
        hooks: Record each attempt.
        waited_s: Seconds that the step waited for its batch.
    """
    lr, settings = apply_schedules(trainer, batch)
    while True:
        began = time.perf_counter()
        result = train_step(trainer, batch, settings)
        seconds, waited_s = waited_s + time.perf_counter() - began, 0.0
        hooks.record(batch, result, lr=lr, seconds=seconds)
        if result.applied and _is_finite(result.grad_norm):
            if trainer.average is not None:
                trainer.average.update(batch.position)
            return
        if not _overflowed(trainer, result):
            hooks.not_finite(batch, result)
            return


def apply_schedules(trainer: Trainer, batch: Batch) -> tuple[float, Settings]:
    """Set learning rate, weight decay and dropout of a step; returns the rate and the regularizers."""
    position = batch.position
    before, after = position.tokens, position.tokens + batch.tokens
    lr = step_learning_rate(before, after, position.total_tokens, trainer.optimizer, trainer.schedule)
    settings = Settings.at(position, trainer.regularize, trainer.optimizer.weight_decay)
    set_learning_rate(trainer.engine.optimizer, lr)
    set_weight_decay(trainer.engine.optimizer, settings.weight_decay)
    set_rates(trainer.engine.module, position)
    return lr, settings


def _overflowed(trainer: Trainer, result: StepResult) -> bool:
    """Whether fp16 skipped the update for its loss scale, which is smaller at the next attempt."""
    return trainer.engine.fp16_enabled() and not result.applied and math.isfinite(result.loss_nats)


def _is_finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a call of `train`."""

    run: Path
    steps: int
    """Optimizer steps completed, those of earlier calls included."""
    state: Literal["done", "already done", "preempted"]
    """Whether the run is complete, was complete before the call, or stopped on request with a checkpoint."""
    reason: str | None = None
    """The request to stop, or why the run ended early."""


def train(
    config: RunConfig, out: Path, *, max_minutes: float | None = None, stop: StopRequest | None = None
) -> TrainResult:
    """Train in ``out``, or resume from its newest undamaged checkpoint, written by any number of ranks.

    Args:
        config: The run. Under `deepspeed` or `torchrun` every rank passes the same.
        out: The run folder; it may exist if it holds the same config fingerprint.
        max_minutes: Minutes since the start of this process after which it stops with a checkpoint.
        stop: Collects requests to stop; None handles signals during the call.

    Raises:
        ReptrainError: If the run cannot be trained; nothing is written then.
        ResumeError: If ``out`` holds another configuration or subset, or only damaged checkpoints.
        RunError: If the loss or the gradient is no longer finite, or another process trains in ``out``.
    """
    device = choose_device(config.train.device)
    config = config.on_device(device.type)
    check_precision(config.train.precision, device)
    if config.model.moe is not None and config.model.moe.backend == "megablocks":
        require_megablocks()
    data = open_data(config)
    with ExitStack() as held:
        if stop is None:
            stop = held.enter_context(stop_requests(max_minutes))
        world = join(device, timeout_s=config.train.rank_timeout_seconds)
        return train_as_rank(config, out, data, world, stop)


def train_as_rank(config: RunConfig, out: Path, data: Data, world: World, stop: StopRequest) -> TrainResult:
    """`train` in a process that has joined the other ranks."""
    check_expert_parallel(config.train.expert_parallel_size, world)
    config = config.on_device(world.device.type)
    with ExitStack() as held:
        parent = open_parent(config.init_from, config.model, out, data.tokenizer)
        folder = _enter_folder(config, out, data, world, held, parent)
        if folder.status().state == "done":
            return TrainResult(out, folder.status().step or data.steps.num_steps, "already done")
        with failures_recorded(
            world,
            timeout_s=config.train.rank_timeout_seconds,
            record=partial(_record_failure, folder),
        ) as pulse:
            ending = _run(config, folder, data, world, stop, pulse, parent)
        if world.is_main:
            folder.set_status(ending.state, ending.reason, step=ending.steps)
            folder.note(ending.state, ending.reason or "", step=ending.steps)
        world.barrier()
    return TrainResult(out, *ending)


class _Ending(NamedTuple):
    steps: int
    state: Literal["done", "preempted"]
    reason: str | None


def _record_failure(folder: RunFolder, reason: str) -> None:
    folder.set_status("failed", reason)
    folder.note("failed", reason, step=folder.ledger.end())


def _enter_folder(
    config: RunConfig, out: Path, data: Data, world: World, held: ExitStack, parent: SavedModel | None
) -> RunFolder:
    """Create or check the folder and lock it on the main rank; an error there is raised on every rank."""

    def enter() -> None:
        attention = stated_attention(config.model, world.device, config.example_shape.target_tokens)
        here = describe(world, config.train, attention)
        folder = RunFolder.create_or_open(
            out, config, data.run_plan, here, parent_weights=partial(weights_at, config.init_from)
        )
        held.enter_context(folder.lock())
        if parent is not None:
            record_parent(parent, config.model, folder.path)

    world.on_main(enter)
    return RunFolder.open(out)


def _run(
    config: RunConfig,
    folder: RunFolder,
    data: Data,
    world: World,
    stop: StopRequest,
    pulse: Callable[[], None],
    parent: SavedModel | None,
) -> _Ending:
    """Train to the end, until a request to stop, or until early stopping."""
    if world.is_main:
        print_line(run_header(config, folder.path, data, world))
    training = prepare(config, data, world, parent)
    training.trainer.engine.register_forward_pre_hook(lambda *_: pulse())
    with ExitStack() as resources:
        hooks = Pretraining(config, folder, training, resources)
        done, reason = hooks.first_step, stop.reason(world)
        if done == 0 and not reason:
            hooks.evaluate(0)
        if not (reason or hooks.stop_early):
            done, reason = run_steps(training.trainer, training.batches, hooks, first_step=done, stop=stop)
    if done == data.steps.num_steps:
        return _Ending(done, "done", None)
    if hooks.stop_early:
        return _Ending(done, "done", hooks.stop_early)
    return _Ending(done, "preempted", reason)
