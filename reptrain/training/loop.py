"""The training loop: next batch, step, record, evaluate, save."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from reptrain import checkpoint
from reptrain.batch.loader import StepBatch
from reptrain.checkpoint import FoundCheckpoint, Topology, topology
from reptrain.config import RunConfig
from reptrain.config.schedule import step_learning_rate
from reptrain.distributed.precision import check_precision
from reptrain.distributed.stop import StopRequest, stop_requests
from reptrain.distributed.watchdog import watching
from reptrain.distributed.world import (
    World,
    check_expert_parallel,
    choose_device,
    describe,
    join,
    meeting_store,
)
from reptrain.errors import ReptrainError, RunError
from reptrain.hub.saved_model import TrainedModel
from reptrain.model.dropout import set_rates
from reptrain.model.megablocks import require_megablocks
from reptrain.plan.position import position_at
from reptrain.runs.folder import RunFolder
from reptrain.terminal import StepDisplay
from reptrain.training.early_stopping import Patience, select_losses
from reptrain.training.init_from import open_ancestor, record_ancestor
from reptrain.training.optimizers import set_learning_rate
from reptrain.training.recorder import Recorder, StepPlace, print_line, stated_attention
from reptrain.training.regularize import Settings, set_weight_decay
from reptrain.training.setup import Data, Training, open_data, prepare
from reptrain.training.step import train_step
from reptrain.training.summary import run_header
from reptrain.training.throughput import throughput_of


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended."""

    run: Path
    steps: int
    """Optimizer steps completed, those of earlier calls included."""
    state: Literal["done", "already done", "preempted"]
    """Whether the run is complete, was so before the call, or stopped with a checkpoint when asked to."""
    reason: str | None = None
    """What asked it to stop."""


def train(
    config: RunConfig, out: Path, *, max_minutes: float | None = None, stop: StopRequest | None = None
) -> TrainResult:
    """Train in ``out``, or go on from its newest checkpoint that is whole, whoever wrote it.

    Args:
        config: The run. Under `deepspeed` or `torchrun` every rank passes the same.
        out: The run folder; it may exist if it holds the same mathematics.
        max_minutes: Minutes from the start of this process after which it stops with a checkpoint.
        stop: Where requests to stop are noted already; None catches signals during the call.

    Raises:
        ReptrainError: For input that cannot be trained on, before anything is written.
        ResumeError: If ``out`` holds another configuration or subset, or no checkpoint that is whole.
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
    """`train` for a process that has joined its ranks."""
    check_expert_parallel(config.train.expert_parallel_size, world)
    config = config.on_device(world.device.type)
    with ExitStack() as held:
        ancestor = open_ancestor(config, out, data.tokenizer)
        folder = _enter_folder(config, out, data, world, held, ancestor)
        if folder.status().state == "done":
            return TrainResult(out, folder.status().step or data.steps.num_steps, "already done")
        timeout_s = config.train.rank_timeout_seconds
        try:
            with watching(
                meeting_store(), world, timeout_s=timeout_s, tell=partial(_tell_failure, folder)
            ) as pulse:
                ending = _run(config, folder, data, world, stop, pulse, ancestor)
        except BaseException as error:
            if world.is_main:
                _tell_failure(folder, error)
            raise
        if world.is_main:
            folder.set_status(ending.state, ending.reason, step=ending.steps)
            folder.note(ending.state, ending.reason or "", step=ending.steps)
        world.barrier()
    return TrainResult(out, *ending)


class _Ending(NamedTuple):
    steps: int
    state: Literal["done", "preempted"]
    reason: str | None


def _tell_failure(folder: RunFolder, error: BaseException) -> None:
    text = str(error) if isinstance(error, ReptrainError) else f"{type(error).__name__}: {error}"
    # A full disk may be why the run failed: then its reason is told, not kept.
    with suppress(OSError, ReptrainError):
        folder.set_status("failed", text)
        folder.note("failed", text, step=folder.ledger.end())


def _enter_folder(
    config: RunConfig, out: Path, data: Data, world: World, held: ExitStack, ancestor: TrainedModel | None
) -> RunFolder:
    """The main rank makes or checks the folder and locks it; the others follow, or fail as it did."""

    def enter() -> None:
        attention = stated_attention(config.model, world.device, config.example_shape.target_tokens)
        here = describe(world, config.train, attention)
        folder = RunFolder.create_or_open(out, config, data.run_plan, here)
        held.enter_context(folder.lock())
        if ancestor is not None:
            record_ancestor(ancestor, config, folder.path)

    world.on_main(enter)
    return RunFolder.open(out)


def _run(
    config: RunConfig,
    folder: RunFolder,
    data: Data,
    world: World,
    stop: StopRequest,
    pulse: Callable[[], None],
    ancestor: TrainedModel | None,
) -> _Ending:
    """Train to the end, until asked to stop, or until patience is over."""
    if world.is_main:
        print_line(run_header(config, folder.path, data, world))
    training = prepare(config, data, world, ancestor)
    training.engine.register_forward_pre_hook(lambda *_: pulse())
    done = _resume(folder, training, world)
    patience = _patience(config, folder, training, world)
    marks = _Marks.of(config, data.steps.num_steps)
    with ExitStack() as held:
        recorder = _recorder(config, folder, data, world, done, held)
        reason = stop.reason(world)
        if done == 0 and not reason:
            patience.add(_evaluate(training, recorder, world, done))
        began = time.perf_counter()
        for batch in training.loader.iterate(done) if not (reason or patience.is_over) else ():
            _step(config, training, recorder, world, batch, waited_s=time.perf_counter() - began)
            done = batch.step + 1
            reason = stop.reason(world)
            if done in marks.evaluate:
                patience.add(_evaluate(training, recorder, world, done))
            if done in marks.save or reason or patience.is_over:
                if recorder:
                    recorder.sync()
                checkpoint.save(
                    training.engine,
                    folder.checkpoints,
                    done,
                    world=world,
                    records=[folder.ledger.path, folder.metrics.path],
                    keep_last=config.checkpoint.keep_last,
                    keep=marks.keep,
                    average=training.average,
                )
            if reason or patience.is_over:
                break
            began = time.perf_counter()
    if done == data.steps.num_steps:
        return _Ending(done, "done", None)
    return _Ending(done, "done", str(patience)) if patience.is_over else _Ending(done, "preempted", reason)


def _patience(config: RunConfig, folder: RunFolder, training: Training, world: World) -> Patience:
    """What the evaluations before the next step leave of it, the same on every rank."""
    name = training.select_set.name
    return Patience(config.evaluate.patience, world.on_main(lambda: select_losses(folder.metrics, name)))


@dataclass(frozen=True)
class _Marks:
    """Numbers of completed steps after which something is done."""

    evaluate: set[int]
    save: set[int]
    keep: set[int]
    """Of those saved the ones that stay for good."""

    @classmethod
    def of(cls, config: RunConfig, num_steps: int) -> _Marks:
        every = config.checkpoint.keep_every_fraction
        keep = _marks(num_steps, every) if every else set()
        save = _marks(num_steps, config.checkpoint.every_fraction) | keep
        return cls(_marks(num_steps, config.evaluate.every_fraction), save, keep)


def _marks(num_steps: int, fraction: float) -> set[int]:
    """The numbers of completed steps at every ``fraction`` of the run, its end always among them."""
    fraction = max(fraction, 1 / num_steps)
    parts = range(1, int(1 / fraction + 1e-9) + 1)
    return {max(1, round(part * fraction * num_steps)) for part in parts} | {num_steps}


def _resume(folder: RunFolder, training: Training, world: World) -> int:
    """Load the newest whole checkpoint, cut the records back to it, and return the next step."""
    found = checkpoint.find(folder.checkpoints, world=world)
    if found.path is not None and found.manifest is not None:
        checkpoint.load(training.engine, found.path, found.manifest, average=training.average)
    here = topology(training.engine, world)
    world.on_main(lambda: _cut_back(folder, found, here))
    return found.manifest.step if found.manifest else 0


def _cut_back(folder: RunFolder, found: FoundCheckpoint, here: Topology) -> None:
    """Drop the records after the checkpoint, and say where the run goes on."""
    folder.events.drop_half_line()
    step = found.manifest.step if found.manifest else 0
    for damage in found.damaged:
        print_line(f"WARNING: {damage}: passed over")
        folder.note("damaged", damage, step=step)
    for damage in checkpoint.restore_records(found, [folder.ledger, folder.metrics]):
        print_line(f"WARNING: {damage}: restored from {found.path}")
        folder.note("damaged", damage, step=step)
    if found.manifest is None:
        folder.set_status("running")
        folder.note("started", f"by {here}", step=0)
        return
    writers = found.manifest.writers
    by = f"by {here}" if writers == here else f"by {here}, written by {writers}"
    print_line(f"resumed at step {step} from {found.path} {by}")
    passed_over = f"went on from step {step}: {'; '.join(found.damaged)}" if found.damaged else None
    folder.set_status("running", passed_over, step=step)
    folder.note("resumed", by, step=step)


def _recorder(
    config: RunConfig, folder: RunFolder, data: Data, world: World, first_step: int, held: ExitStack
) -> Recorder | None:
    """The main rank's recorder with its progress bar, until ``held`` is left; None on the others."""
    if not world.is_main:
        return None
    throughput = throughput_of(
        config, vocab_size=data.tokenizer.vocab_size, world_size=world.world_size, device=world.device
    )
    consumed = min(first_step * data.steps.batch_windows, data.plan.total_windows)
    not_applied = sum(record.tokens for record in folder.ledger.records() if not record.applied)
    before = data.plan.tokens_before(consumed) - not_applied
    steps = data.steps.num_steps
    display = held.enter_context(StepDisplay(sys.stdout, total=steps, done=first_step))
    recorder = Recorder(folder, data.plan, throughput, num_steps=steps, tokens_before=before, display=display)
    return held.enter_context(recorder)


def _step(
    config: RunConfig,
    training: Training,
    recorder: Recorder | None,
    world: World,
    batch: StepBatch,
    *,
    waited_s: float,
) -> None:
    """One step; fp16 tries it again after an overflow. Else a value that is not finite ends or skips it.

    Args:
        config: The run.
        training: Its parts.
        recorder: Of the main rank.
        world: The ranks.
        batch: Of the step.
        waited_s: Seconds that the step waited for its batch.
    """
    data, step = training.data, batch.step
    first, windows = data.steps.window_range(step)
    tokens = int(data.plan.tokens_of(np.arange(first, first + windows)).sum())
    before, after = (data.plan.tokens_before(window) for window in (first, first + windows))
    rate = step_learning_rate(before, after, data.plan.total_tokens, config.optimizer, config.schedule)
    set_learning_rate(training.engine.optimizer, rate)
    progress = position_at(data.plan, data.steps, step)
    settings = Settings.at(config, progress)
    set_weight_decay(training.engine.optimizer, settings.weight_decay)
    set_rates(training.engine.module, progress)
    while True:
        began = time.perf_counter()
        result = train_step(
            training.engine,
            batch.micro_batches,
            world=world,
            seed=config.seed,
            step=step,
            loss_tokens=batch.loss_tokens,
            objective=data.objective,
            settings=settings,
            input_noise=training.input_noise,
        )
        seconds, waited_s = waited_s + time.perf_counter() - began, 0.0
        if recorder:
            recorder.step(StepPlace(step, first, windows, tokens), result, lr=rate, seconds=seconds)
        if result.applied and _is_finite(result.grad_norm):
            if training.average is not None:
                training.average.update(progress)
            return
        overflowed = config.train.precision == "fp16" and not result.applied
        if overflowed and math.isfinite(result.loss_nats):
            continue
        found = f"loss {result.loss_nats}, gradient norm {result.grad_norm}"
        if config.train.on_nonfinite == "stop" or result.applied:
            raise RunError(
                f"diverged at step {step}",
                got=found,
                rule="loss and gradient must be finite",
                remedy="Its last checkpoint is kept. Train anew with a lower optimizer.lr, or set"
                " train.on_nonfinite=skip to go on without such steps.",
            )
        if recorder:
            recorder.skipped(step, found)
        return


def _is_finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)


def _evaluate(training: Training, recorder: Recorder | None, world: World, step: int) -> float:
    """Score every set, by the average of the weights too; returns the nats per token of the select set."""
    data = training.data
    consumed = min(step * data.steps.batch_windows, data.plan.total_windows)
    epoch = consumed / data.plan.windows_per_epoch

    def score_all(weights: Literal["own", "average"]) -> dict[str, float]:
        found = {}
        for evaluation_set in training.sets:
            score = evaluation_set.score(training.engine, world=world)
            found[evaluation_set.name] = score.nats_per_token
            if recorder:
                recorder.score(step, epoch, evaluation_set.name, score, weights)
        return found

    nats = score_all("own")
    if training.average is not None:
        with training.average.in_place():
            score_all("average")
    return nats[training.select_set.name]
