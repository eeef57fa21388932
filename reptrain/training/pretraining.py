"""The parts of a pre-training run that the training loop uses: recorder, evaluator, marks; resuming."""

from __future__ import annotations

import sys
from collections.abc import Collection, Set
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from reptrain.config import RunConfig
from reptrain.config.sections import CheckpointConfig, EvaluateConfig
from reptrain.hub.saved_model import SavedModel
from reptrain.plan.marks import evaluation_steps, marks
from reptrain.runs.folder import RunFolder
from reptrain.runs.ledger import NO_LINE, LedgerEvent
from reptrain.runs.run_plan import RUN_FORMAT
from reptrain.terminal import StepDisplay
from reptrain.training.early_stopping import Patience, select_losses
from reptrain.training.init_from import parent_head
from reptrain.training.recorder import Recorder, print_line
from reptrain.training.resume import resume
from reptrain.training.setup import Training
from reptrain.training.step import Trainer
from reptrain.training.throughput import throughput_of


@dataclass(frozen=True)
class Marks:
    """Numbers of completed steps at which the run evaluates or saves."""

    evaluate: Set[int]
    save: Set[int]
    keep: Set[int]
    """The saved steps whose checkpoints stay for good."""

    @classmethod
    def of(
        cls,
        evaluate: EvaluateConfig,
        saving: CheckpointConfig,
        num_steps: int,
        more: Collection[int] = (),
    ) -> Marks:
        """The marks of a run.

        Args:
            evaluate: When to evaluate.
            saving: When to save.
            num_steps: Steps of the run.
            more: Further steps whose checkpoints are kept: ends of cycles, amounts of text.
        """
        keep = marks(num_steps, saving.keep_every_fraction) if saving.keep_every_fraction else set()
        keep |= {*saving.at_steps, *more}
        save = marks(num_steps, saving.every_fraction) | keep
        return cls(evaluation_steps(evaluate, num_steps), save, keep)


def resume_run(folder: RunFolder, trainer: Trainer, parent: SavedModel | None) -> int:
    """Load the newest undamaged checkpoint of a run; returns the steps completed.

    Args:
        folder: The run.
        trainer: Its model under DeepSpeed.
        parent: What its initial weights came from, if it has no checkpoint yet.
    """
    before = trainer.world.on_main(folder.ledger.head)
    step, skipped, state = resume(
        trainer,
        folder.checkpoints,
        [folder.ledger, folder.metrics],
        events=folder.events,
        say=print_line,
    )
    reason = f"resumed from step {step}: {'; '.join(skipped)}" if skipped else None

    def note() -> None:
        folder.ledger.append(_beginning(folder, step, state, before, parent))
        folder.set_status("running", reason, step=step or None)

    trainer.world.on_main(note)
    return step


def _beginning(
    folder: RunFolder, step: int, state: str | None, before: str, parent: SavedModel | None
) -> LedgerEvent:
    """The line with which a start or a resumption begins in the ledger.

    Args:
        folder: The run.
        step: Steps completed.
        state: State hash of the loaded checkpoint; None at a start.
        before: Head of the ledger before it was cut back.
        parent: What the initial weights came from.
    """
    discarded = before if before not in (NO_LINE, folder.ledger.head()) else None
    files = folder.checksums()
    if state is not None:
        return LedgerEvent(event="resume", step=step, files=files, state=state, discarded=discarded)
    branch = None if parent is None else parent_head(parent)
    return LedgerEvent(
        event="start",
        step=step,
        format=RUN_FORMAT,
        files=files,
        parent=branch,
        discarded=discarded,
    )


def open_recorder(
    config: RunConfig, folder: RunFolder, training: Training, first_step: int, resources: ExitStack
) -> Recorder:
    """The main rank's recorder with its progress bar.

    Args:
        config: The run.
        folder: Its folder.
        training: Its plan and ranks.
        first_step: Steps completed before.
        resources: Closes the recorder and the progress bar.
    """
    data, world = training.data, training.trainer.world
    throughput = throughput_of(
        config.model,
        config.train,
        shape=config.example_shape,
        window_tokens=config.window_tokens,
        vocab_size=data.tokenizer.vocab_size,
        world_size=world.world_size,
        device=world.device,
    )
    consumed = min(first_step * data.steps.batch_windows, data.plan.total_windows)
    not_applied = sum(record.tokens for record in folder.ledger.records() if not record.applied)
    before = data.plan.tokens_before(consumed) - not_applied
    steps = data.steps.num_steps
    display = resources.enter_context(StepDisplay(sys.stdout, total=steps, done=first_step))
    recorder = Recorder(folder, data.plan, throughput, num_steps=steps, tokens_before=before, display=display)
    return resources.enter_context(recorder)


class SetEvaluator:
    """Scores the evaluation sets of a run, and decides on early stopping.

    Args:
        training: The run's model and evaluation sets.
        folder: Its folder, with the metrics of earlier calls.
        recorder: Records the scores; None on ranks other than the main one.
        steps: Numbers of completed steps at which to evaluate.
        patience: Evaluations without improvement that end the run; None never ends it.
    """

    keep: Set[int] = frozenset()
    """Empty: the checkpoints to keep do not depend on the scores."""

    def __init__(
        self,
        training: Training,
        folder: RunFolder,
        recorder: Recorder | None,
        steps: Set[int],
        patience: int | None,
    ) -> None:
        self.steps = steps
        self._training, self._recorder = training, recorder
        name, world = training.select_set.name, training.trainer.world
        self._patience = Patience(patience, world.on_main(lambda: select_losses(folder.metrics, name)))

    @property
    def stop_early(self) -> str | None:
        """Why the run ends before its last step; None if it continues."""
        return str(self._patience) if self._patience.is_over else None

    def evaluate(self, step: int) -> None:
        """Score every set, with the averaged weights too if there are any."""
        nats = self._score("own", step)
        average = self._training.trainer.average
        if average is not None:
            with average.in_place():
                self._score("average", step)
        self._patience.add(nats[self._training.select_set.name])

    def _score(self, weights: Literal["own", "average"], step: int) -> dict[str, float]:
        """Nats per token of every set after ``step`` steps."""
        data, trainer, nats = self._training.data, self._training.trainer, {}
        consumed = min(step * data.steps.batch_windows, data.plan.total_windows)
        for evaluation_set in self._training.sets:
            score = evaluation_set.score(trainer.engine, world=trainer.world)
            nats[evaluation_set.name] = score.nats_per_token
            if self._recorder:
                epoch = consumed / data.plan.windows_per_epoch
                self._recorder.score(step, epoch, evaluation_set.name, score, weights)
        return nats
