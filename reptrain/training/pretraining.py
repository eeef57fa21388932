"""What pre-training does around the steps: record, evaluate, save, stop early."""

from __future__ import annotations

import sys
from collections.abc import Set
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from reptrain import checkpoint
from reptrain.config import RunConfig
from reptrain.config.schema import CheckpointConfig, EvaluateConfig
from reptrain.errors import RunError
from reptrain.runs.folder import RunFolder
from reptrain.terminal import StepDisplay
from reptrain.training.batches import Batch
from reptrain.training.early_stopping import Patience, select_losses
from reptrain.training.hooks import Request
from reptrain.training.recorder import Recorder, print_line
from reptrain.training.resume import resume
from reptrain.training.setup import Training
from reptrain.training.step import StepResult
from reptrain.training.throughput import throughput_of


@dataclass(frozen=True)
class Marks:
    """Numbers of completed steps at which the run evaluates or saves."""

    evaluate: Set[int]
    save: Set[int]
    keep: Set[int]
    """The saved steps whose checkpoints stay for good."""

    @classmethod
    def of(cls, evaluate: EvaluateConfig, saving: CheckpointConfig, num_steps: int) -> Marks:
        """The marks of a run of ``num_steps`` steps."""
        keep = _marks(num_steps, saving.keep_every_fraction) if saving.keep_every_fraction else set()
        save = _marks(num_steps, saving.every_fraction) | keep
        return cls(_marks(num_steps, evaluate.every_fraction), save, keep)


def _marks(num_steps: int, fraction: float) -> set[int]:
    """The numbers of completed steps at every ``fraction`` of the run, and at its end."""
    fraction = max(fraction, 1 / num_steps)
    parts = range(1, int(1 / fraction + 1e-9) + 1)
    return {max(1, round(part * fraction * num_steps)) for part in parts} | {num_steps}


class Pretraining:
    """The hooks of a pre-training run; resumes the run when it is made.

    Args:
        config: The run.
        folder: Its folder.
        training: Its model, batches and evaluation sets.
        resources: Closes the progress bar and the recorder.
    """

    def __init__(
        self, config: RunConfig, folder: RunFolder, training: Training, resources: ExitStack
    ) -> None:
        self._folder, self._training = folder, training
        self._on_nonfinite, self._keep_last = config.train.on_nonfinite, config.checkpoint.keep_last
        self._world = training.trainer.world
        self.first_step = self._resume()
        self._marks = Marks.of(config.evaluate, config.checkpoint, training.data.steps.num_steps)
        name = training.select_set.name
        self._patience = Patience(
            config.evaluate.patience, self._world.on_main(lambda: select_losses(folder.metrics, name))
        )
        self._recorder = self._open_recorder(config, resources) if self._world.is_main else None

    def _resume(self) -> int:
        folder, world = self._folder, self._world
        step, skipped = resume(
            self._training.trainer,
            folder.checkpoints,
            [folder.ledger, folder.metrics],
            events=folder.events,
            say=print_line,
        )
        reason = f"resumed from step {step}: {'; '.join(skipped)}" if skipped else None
        world.on_main(lambda: folder.set_status("running", reason, step=step or None))
        return step

    def _open_recorder(self, config: RunConfig, resources: ExitStack) -> Recorder:
        """The main rank's recorder with its progress bar."""
        folder, data, world = self._folder, self._training.data, self._world
        throughput = throughput_of(
            config.model,
            config.train,
            shape=config.example_shape,
            window_tokens=config.window_tokens,
            vocab_size=data.tokenizer.vocab_size,
            world_size=world.world_size,
            device=world.device,
        )
        consumed = min(self.first_step * data.steps.batch_windows, data.plan.total_windows)
        not_applied = sum(record.tokens for record in folder.ledger.records() if not record.applied)
        before = data.plan.tokens_before(consumed) - not_applied
        steps = data.steps.num_steps
        display = resources.enter_context(StepDisplay(sys.stdout, total=steps, done=self.first_step))
        recorder = Recorder(
            folder, data.plan, throughput, num_steps=steps, tokens_before=before, display=display
        )
        return resources.enter_context(recorder)

    @property
    def evaluate_at(self) -> Set[int]:
        """Numbers of completed steps at which to evaluate."""
        return self._marks.evaluate

    @property
    def save_at(self) -> Set[int]:
        """Numbers of completed steps at which to save."""
        return self._marks.save

    @property
    def stop_early(self) -> str | None:
        """Why the run ends before its last step; None if it continues."""
        return str(self._patience) if self._patience.is_over else None

    def record(self, batch: Batch, result: StepResult, *, lr: float, seconds: float) -> None:
        """Record an attempt at a step, applied or not."""
        if self._recorder:
            self._recorder.step(batch, result, lr=lr, seconds=seconds)

    def not_finite(self, batch: Batch, result: StepResult) -> None:
        """End the run, or skip the step if `train.on_nonfinite` says so.

        Raises:
            RunError: If the run ends.
        """
        got = f"loss {result.loss_nats}, gradient norm {result.grad_norm}"
        if self._on_nonfinite == "stop" or result.applied:
            raise RunError(
                f"diverged at step {batch.step}",
                got=got,
                rule="loss and gradient must be finite",
                remedy="The last checkpoint is kept. Start a new run with a lower optimizer.lr, or set"
                " train.on_nonfinite=skip to skip such steps.",
            )
        if self._recorder:
            self._recorder.skipped(batch.step, got)

    def evaluate(self, step: int) -> Request:
        """Score every set, with the averaged weights too if there are any."""
        nats = self._score("own", step)
        average = self._training.trainer.average
        if average is not None:
            with average.in_place():
                self._score("average", step)
        self._patience.add(nats[self._training.select_set.name])
        return Request(stop=self.stop_early)

    def _score(self, weights: Literal["own", "average"], step: int) -> dict[str, float]:
        """Nats per token of every set after ``step`` steps."""
        data, nats = self._training.data, {}
        consumed = min(step * data.steps.batch_windows, data.plan.total_windows)
        for evaluation_set in self._training.sets:
            score = evaluation_set.score(self._training.trainer.engine, world=self._world)
            nats[evaluation_set.name] = score.nats_per_token
            if self._recorder:
                epoch = consumed / data.plan.windows_per_epoch
                self._recorder.score(step, epoch, evaluation_set.name, score, weights)
        return nats

    def save(self, step: int) -> None:
        """Save a checkpoint with the records so far."""
        if self._recorder:
            self._recorder.sync()
        checkpoint.save(
            self._training.trainer.engine,
            self._folder.checkpoints,
            step,
            world=self._world,
            records=[self._folder.ledger.path, self._folder.metrics.path],
            keep_last=self._keep_last,
            keep=self._marks.keep,
            average=self._training.trainer.average,
        )
