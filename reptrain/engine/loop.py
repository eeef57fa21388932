"""The training loop: next batch, step, record, evaluate, save."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from reptrain.batch.loader import StepBatch
from reptrain.config import RunConfig
from reptrain.engine import checkpoint
from reptrain.engine.checkpoint import CheckpointMeta
from reptrain.engine.distributed import World, check_precision, choose_device, join
from reptrain.engine.optim import set_learning_rate
from reptrain.engine.preempt import stop_requests
from reptrain.engine.record import Recorder, StepPlace, print_line
from reptrain.engine.schedule import learning_rate
from reptrain.engine.setup import Data, Training, open_data, prepare
from reptrain.engine.step import train_step
from reptrain.engine.throughput import throughput_of
from reptrain.errors import RunError
from reptrain.runs.environment import collect
from reptrain.runs.folder import RunFolder


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended."""

    run: Path
    steps: int
    """Optimizer steps completed, those of earlier calls included."""
    state: Literal["done", "already done", "preempted"]
    """Whether the run is complete, was so before the call, or stopped with a checkpoint when asked to."""


def train(config: RunConfig, out: Path) -> TrainResult:
    """Train in ``out``, or go on from its newest checkpoint.

    Args:
        config: The run. Under `deepspeed` or `torchrun` every rank passes the same.
        out: The run folder; it may exist if it holds the same mathematics.

    Raises:
        ReptrainError: For input that cannot be trained on, before anything is written.
        ResumeError: If ``out`` holds another configuration, subset or world.
        RunError: If the loss or the gradient is no longer finite, or another process trains in ``out``.
    """
    device = choose_device(config.train.device)
    check_precision(config.train.precision, device)
    data = open_data(config)
    return train_as_rank(config, out, data, join(device))


def train_as_rank(config: RunConfig, out: Path, data: Data, world: World) -> TrainResult:
    """`train` for a process that has joined its ranks."""
    with ExitStack() as held:
        folder = _enter_folder(config, out, data, world, held)
        if folder.status().state == "done":
            return TrainResult(out, data.steps.num_steps, "already done")
        try:
            steps = _run(config, folder, data, world)
        except BaseException as error:
            if world.is_main:
                # A full disk may be why the run failed: then its reason is told, not kept.
                with suppress(OSError):
                    folder.set_status("failed", f"{type(error).__name__}: {error}")
            raise
        state: Literal["done", "preempted"] = "done" if steps == data.steps.num_steps else "preempted"
        if world.is_main:
            folder.set_status(state, step=steps)
        world.barrier()
    return TrainResult(out, steps, state)


def _enter_folder(config: RunConfig, out: Path, data: Data, world: World, held: ExitStack) -> RunFolder:
    """The main rank makes or checks the folder and locks it; the others follow, or fail as it did."""
    refused: Exception | None = None
    if world.is_main:
        try:
            folder = RunFolder.create_or_open(out, config, data.run_plan, _environment(config, world))
            held.enter_context(folder.lock())
        except Exception as error:  # Whatever it is, the others wait to hear of it.
            refused = error
    refused = world.from_main(refused)
    if refused is not None:
        raise refused
    return RunFolder.open(out)


def _environment(config: RunConfig, world: World) -> dict[str, Any]:
    extra = {"device": str(world.device), "world_size": world.world_size, "precision": config.train.precision}
    if world.device.type == "cuda":
        extra["gpu"] = torch.cuda.get_device_name(world.device)
    return collect(extra)


def _run(config: RunConfig, folder: RunFolder, data: Data, world: World) -> int:
    """Train to the end, or until a signal asks to stop; returns the steps completed."""
    training = prepare(config, data, world)
    done = _resume(config, folder, training, world)
    evaluate_at = _marks(data.steps.num_steps, config.evaluate.every_fraction)
    save_at = _marks(data.steps.num_steps, config.checkpoint.every_fraction)
    with _recorder(config, folder, data, world, done) as recorder, stop_requests() as stop:
        if done == 0:
            _evaluate(training, recorder, world, done)
        for batch in training.loader.iterate(done):
            _step(config, training, recorder, world, batch)
            done = batch.step + 1
            stopping = world.any(stop.is_set)
            if done in evaluate_at:
                _evaluate(training, recorder, world, done)
            if done in save_at or stopping:
                if recorder:
                    recorder.sync()
                meta, keep_last = _meta(config, world, done), config.checkpoint.keep_last
                checkpoint.save(training.engine, folder.checkpoints, meta, world=world, keep_last=keep_last)
            if stopping:
                break
    return done


def _marks(num_steps: int, fraction: float) -> set[int]:
    """The numbers of completed steps at every ``fraction`` of the run, its end always among them."""
    fraction = max(fraction, 1 / num_steps)
    parts = range(1, int(1 / fraction + 1e-9) + 1)
    return {max(1, round(part * fraction * num_steps)) for part in parts} | {num_steps}


def _meta(config: RunConfig, world: World, step: int) -> CheckpointMeta:
    return CheckpointMeta(step, world.world_size, config.train.zero_stage, config.train.precision)


def _resume(config: RunConfig, folder: RunFolder, training: Training, world: World) -> int:
    """Load the newest checkpoint, cut the records back to it, and return the next step."""
    found = checkpoint.latest(folder.checkpoints)
    step = 0
    if found is not None:
        path, meta = found
        checkpoint.load(training.engine, path, meta, expected=_meta(config, world, meta.step))
        step = meta.step
    if world.is_main:
        folder.ledger.truncate(step)
        if found is None:
            folder.metrics.keep(lambda record: False)  # The evaluation before the first step is made again.
        else:
            folder.metrics.truncate(step)
        folder.set_status("running")
        if step:
            print_line(f"resumed at step {step} from {found[0] if found else ''}")
    world.barrier()
    return step


def _recorder(
    config: RunConfig, folder: RunFolder, data: Data, world: World, first_step: int
) -> AbstractContextManager[Recorder | None]:
    """The main rank's recorder; None on the others."""
    if not world.is_main:
        return nullcontext()
    throughput = throughput_of(
        config, vocab_size=data.tokenizer.vocab_size, world_size=world.world_size, device=world.device
    )
    consumed = min(first_step * data.steps.batch_windows, data.plan.total_windows)
    before = data.plan.tokens_before(consumed)
    return Recorder(folder, data.plan, throughput, num_steps=data.steps.num_steps, tokens_before=before)


def _step(
    config: RunConfig, training: Training, recorder: Recorder | None, world: World, batch: StepBatch
) -> None:
    """One step; fp16 tries it again after an overflow. Else a value that is not finite ends the run."""
    data, step = training.data, batch.step
    first, windows = data.steps.window_range(step)
    tokens_after = data.plan.tokens_before(first + windows)
    tokens = tokens_after - data.plan.tokens_before(first)
    targets = data.objective.target_tokens(data.plan.tokens_of(np.arange(first, first + windows)))
    done = tokens_after / data.plan.total_tokens
    rate = learning_rate(done, config.optimizer, config.schedule)
    set_learning_rate(training.engine.optimizer, rate)
    while True:
        began = time.perf_counter()
        result = train_step(
            training.engine,
            batch.micro_batches,
            world=world,
            seed=config.seed,
            step=step,
            target_tokens=targets,
            objective=data.objective,
        )
        seconds = time.perf_counter() - began
        if recorder:
            recorder.step(StepPlace(step, first, windows, tokens), result, lr=rate, seconds=seconds)
        if result.applied and _is_finite(result.grad_norm):
            return
        overflowed = config.train.precision == "fp16" and not result.applied
        if not overflowed or not math.isfinite(result.loss_nats):
            raise RunError(
                f"step {step}",
                got=f"loss {result.loss_nats}, gradient norm {result.grad_norm}",
                rule="loss and gradient must be finite: the run diverged",
                remedy="Resume from its last checkpoint with a lower optimizer.lr in a new run.",
            )


def _is_finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)


def _evaluate(training: Training, recorder: Recorder | None, world: World, step: int) -> None:
    data = training.data
    consumed = min(step * data.steps.batch_windows, data.plan.total_windows)
    for evaluation_set in training.sets:
        score = evaluation_set.score(training.engine, world=world)
        if recorder:
            recorder.score(step, consumed / data.plan.windows_per_epoch, evaluation_set.name, score)
