"""The training loop of pre-training and fine-tuning, and `train`, which pre-trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Set
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from reptrain.config import RunConfig
from reptrain.config.schedule import step_learning_rate, weight_decay_factor
from reptrain.distributed.engine import Engine
from reptrain.distributed.precision import check_precision
from reptrain.distributed.rank_times import RankTimes
from reptrain.distributed.stop import StopRequest, stop_requests
from reptrain.distributed.world import (
    World,
    choose_device,
    describe,
    in_groups,
    join,
    meeting_store,
)
from reptrain.errors import ReptrainError, RunError
from reptrain.hub.saved_model import SavedModel
from reptrain.model.dropout import set_rates
from reptrain.model.megablocks import require_megablocks
from reptrain.plan.cycles import cycle_ends
from reptrain.plan.text_amounts import steps_of_text
from reptrain.runs.folder import RunFolder
from reptrain.runs.mirror import Mirror, refuse_other_copy
from reptrain.training.batches import Batch, Batches
from reptrain.training.branch import begin_branch
from reptrain.training.checkpoints import Checkpoints, reserve_copy
from reptrain.training.failures import failures_recorded
from reptrain.training.init_from import open_parent, record_parent, weights_at
from reptrain.training.optimizers import set_learning_rate
from reptrain.training.pretraining import Marks, SetEvaluator, open_recorder, resume_run
from reptrain.training.recorder import Recorder, print_line, stated_attention
from reptrain.training.regularize import Settings, set_weight_decay
from reptrain.training.setup import Data, open_data, prepare, resolve_budgets
from reptrain.training.step import StepResult, Trainer, train_step
from reptrain.training.summary import run_header


class LoopEnd(NamedTuple):
    """Where the loop stopped."""

    steps: int
    """Completed steps, those before this call included."""
    reason: str | None
    """The request to stop; None if there was none."""


class StepRecorder(Protocol):
    """Records the steps, on the main rank."""

    def step(self, batch: Batch, result: StepResult, *, lr: float, seconds: float) -> None:
        """Record an attempt at a step, applied or not."""

    def skipped(self, step: int, reason: str) -> None:
        """Report a step that is skipped because its loss or gradient is not finite."""


class Evaluator(Protocol):
    """Evaluates the model during the training, on every rank."""

    @property
    def steps(self) -> Set[int]:
        """Numbers of completed steps at which to evaluate."""

    @property
    def keep(self) -> Set[int]:
        """Evaluated steps whose checkpoints to save and to keep."""

    @property
    def stop_early(self) -> str | None:
        """Why the training ends before its last step; None if it continues."""

    def evaluate(self, step: int) -> None:
        """Evaluate after ``step`` completed steps, and record the scores."""


def run_steps(
    trainer: Trainer,
    batches: Batches,
    *,
    recorder: StepRecorder | None,
    evaluator: Evaluator,
    checkpoints: Checkpoints,
    first_step: int,
    stop: StopRequest,
    rank_times: RankTimes | None = None,
    poll_stop_steps: int = 1,
) -> LoopEnd:
    """Train from ``first_step`` until the batches end, a request to stop, or early stopping.

    Args:
        trainer: The model under DeepSpeed.
        batches: The batches by step.
        recorder: Records every step; None on ranks other than the main one.
        evaluator: Evaluates the model, and decides on early stopping.
        checkpoints: Saves the checkpoints.
        first_step: Steps completed before.
        stop: Requests of signals and time limits.
        rank_times: Compares the times of the ranks; None: no comparison.
        poll_stop_steps: Steps after which the ranks agree on a request to stop.

    Raises:
        RunError: If the loss or the gradient of a step is not finite and such steps are not skipped.
    """
    done, reason = first_step, None
    began = time.perf_counter()
    for batch in batches.iterate(first_step):
        lr, settings = apply_schedules(trainer, batch)
        while True:
            result = train_step(trainer, batch, settings)
            if recorder is not None:
                recorder.step(batch, result, lr=lr, seconds=time.perf_counter() - began)
            if not _loss_scale_overflowed(trainer, result):
                break
            began = time.perf_counter()
        if not _is_finite(result):
            # If the training ends here, its last checkpoint should be complete.
            checkpoints.finish()
            _stop_or_skip(trainer, batch, result, recorder)
        elif trainer.average is not None:
            trainer.average.update(batch.position)
        if rank_times is not None:
            rank_times.step()
        done = batch.step + 1
        checkpoints.continue_save()
        if done % poll_stop_steps == 0:
            reason = stop.reason(trainer.world)
        if done in evaluator.steps:
            evaluator.evaluate(done)
        ends = bool(reason or evaluator.stop_early)
        if ends or done in checkpoints.steps or done in evaluator.keep:
            checkpoints.save(done, keep=evaluator.keep, wait=ends)
        if ends:
            break
        began = time.perf_counter()
    checkpoints.finish()
    return LoopEnd(done, reason)


def apply_schedules(trainer: Trainer, batch: Batch) -> tuple[float, Settings]:
    """Set learning rate, weight decay and dropout of a step; returns the rate and the regularizers."""
    position = batch.position
    before, after = position.tokens, position.tokens + batch.tokens
    lr = step_learning_rate(before, after, position.total_tokens, trainer.optimizer, trainer.schedule)
    settings = Settings.at(position, trainer.regularize, trainer.optimizer.weight_decay)
    factor = weight_decay_factor(before, after, position.total_tokens, trainer.schedule)
    settings = settings._replace(weight_decay=factor * settings.weight_decay)
    set_learning_rate(trainer.engine.optimizer, lr)
    set_weight_decay(trainer.engine.optimizer, settings.weight_decay)
    set_rates(trainer.engine.module, position)
    return lr, settings


def _loss_scale_overflowed(trainer: Trainer, result: StepResult) -> bool:
    """Whether fp16 skipped the update for its loss scale, which is smaller at the next attempt."""
    return trainer.engine.fp16_enabled() and not result.applied and math.isfinite(result.loss_nats)


def _is_finite(result: StepResult) -> bool:
    return result.applied and (result.grad_norm is None or math.isfinite(result.grad_norm))


def _stop_or_skip(trainer: Trainer, batch: Batch, result: StepResult, recorder: StepRecorder | None) -> None:
    """End the training at a step that is not finite, or skip the step.

    Raises:
        RunError: If the training ends.
    """
    got = f"loss {result.loss_nats}, gradient norm {result.grad_norm}"
    if trainer.on_nonfinite == "stop" or result.applied:
        raise RunError(
            f"diverged at step {batch.step}",
            got=f"{got} (seed {trainer.seed})",
            rule="loss and gradient must be finite",
            remedy="The last checkpoint is kept. Start again in a new folder with a lower optimizer.lr;"
            " in pre-training, train.on_nonfinite=skip skips such steps instead.",
        )
    if recorder is not None:
        recorder.skipped(batch.step, got)


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
    config = resolve_budgets(config)
    data = open_data(config)
    with ExitStack() as held:
        if stop is None:
            stop = held.enter_context(stop_requests(max_minutes))
        world = join(device, timeout_s=config.train.rank_timeout_seconds)
        return train_as_rank(config, out, data, world, stop)


def train_as_rank(config: RunConfig, out: Path, data: Data, world: World, stop: StopRequest) -> TrainResult:
    """`train` in a process that has joined the other ranks."""
    world = in_groups(world, config.train)
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
            mirror = _open_mirror(config, folder, world, held)
            ending = _run(config, folder, data, world, stop, pulse, parent, mirror)
        if world.is_main:
            folder.set_status(ending.state, ending.reason, step=ending.steps)
            folder.note(ending.state, ending.reason or "", step=ending.steps)
        world.barrier()
    return TrainResult(out, *ending)


def _open_mirror(config: RunConfig, folder: RunFolder, world: World, held: ExitStack) -> Mirror | None:
    """The mirror of the run folder, on the main rank; ``held`` waits for its last copy."""
    if config.checkpoint.mirror is None or not world.is_main:
        return None

    def report(reason: str) -> None:
        print_line(f"WARNING: {reason}")
        folder.note("mirror", reason, step=folder.ledger.end())

    return held.enter_context(Mirror(folder.path, config.checkpoint.mirror, report))


def _check_stores(data: Data, world: World) -> None:
    """Check that no store has changed since the start, as each rank sees it.

    Raises:
        StoreError: The same on every rank.
    """

    def problem() -> ReptrainError | None:
        try:
            for store in data.stores.values():
                store.check_unchanged()
        except ReptrainError as error:
            return error
        return None

    for found in world.gather(problem()):
        if found is not None:
            raise found


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
        if config.checkpoint.mirror is not None:
            refuse_other_copy(out, config.checkpoint.mirror)
        attention = stated_attention(config.model, world.device, config.example_shape.target_tokens)
        here = describe(world, config.train, attention) | {"vocab_size": data.tokenizer.vocab_size}
        folder = RunFolder.create_or_open(
            out, config, data.run_plan, here, parent_weights=partial(weights_at, config.init_from)
        )
        held.enter_context(folder.lock())
        if parent is not None:
            record_parent(parent, config.model, folder.path)
        if config.branch is not None:
            begin_branch(config, config.branch, folder, data)

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
    mirror: Mirror | None,
) -> _Ending:
    """Train to the end, until a request to stop, or until early stopping."""
    if world.is_main:
        print_line(run_header(config, folder.path, data, world))
    training = prepare(config, data, world, parent, folder.checkpoints)
    trainer, num_steps = training.trainer, data.steps.num_steps
    trainer.engine.register_forward_pre_hook(lambda *_: pulse())
    done = first_step = resume_run(folder, trainer, parent)
    marks = _marks(config, data)
    checkpoints = Checkpoints(
        trainer,
        folder.checkpoints,
        logs=(folder.ledger, folder.metrics),
        steps=marks.save,
        keep_last=config.checkpoint.keep_last,
        keep=marks.keep,
        check=partial(_check_stores, data, world),
        saved=mirror.commit if mirror else lambda step: None,
        ledger=folder.ledger,
        copy=reserve_copy(config.checkpoint.background, trainer, marks.save, done=done),
        pulse=pulse,
    )
    with ExitStack() as resources:
        resources.enter_context(checkpoints)
        recorder = open_recorder(config, folder, training, done, resources) if world.is_main else None
        evaluator = SetEvaluator(training, folder, recorder, marks.evaluate, config.evaluate.patience)
        rank_times = _compare_ranks(world, trainer.engine, recorder)
        reason = stop.reason(world)
        if done == 0 and not reason:
            evaluator.evaluate(0)
        if not (reason or evaluator.stop_early):
            done, reason = run_steps(
                trainer,
                training.batches,
                recorder=recorder,
                evaluator=evaluator,
                checkpoints=checkpoints,
                first_step=done,
                stop=stop,
                rank_times=rank_times,
                poll_stop_steps=config.train.poll_stop_steps,
            )
        if done == first_step and (done == num_steps or evaluator.stop_early):
            # It was complete before: the ledger of a finished run ends with its last checkpoint.
            checkpoints.save(done)
    if done == num_steps:
        return _Ending(done, "done", None)
    if evaluator.stop_early:
        return _Ending(done, "done", evaluator.stop_early)
    return _Ending(done, "preempted", reason)


def _marks(config: RunConfig, data: Data) -> Marks:
    """The steps at which the run evaluates and saves."""
    ends = cycle_ends(config.schedule, data.plan, data.steps) if config.keeps_cycle_ends else []
    texts = steps_of_text(config.checkpoint.at_text, [*data.stores.values()], data.plan, data.steps)
    return Marks.of(config.evaluate, config.checkpoint, data.steps.num_steps, [*ends, *texts.values()])


def _compare_ranks(world: World, engine: Engine, recorder: Recorder | None) -> RankTimes | None:
    """Start the comparison of the ranks' times; None in a single process, which has no store."""
    store = meeting_store()
    if store is None:
        return None
    return RankTimes(store, world, engine, None if recorder is None else recorder.rank_times)
