"""One fine-tuning: what it does around the steps of the training loop, and its scores at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Set
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from reptrain import checkpoint
from reptrain.config.finetune import FinetuneConfig
from reptrain.config.load import dump_yaml
from reptrain.config.model import ModelConfig
from reptrain.distributed.stop import StopRequest
from reptrain.distributed.world import World
from reptrain.errors import RunError
from reptrain.files import write_atomically
from reptrain.generation.decoding import without_capacity
from reptrain.hub.saved_model import MODEL_FILE, ImportedModel, SavedModel, open_saved_model
from reptrain.model import build_model
from reptrain.plan import StepPlan
from reptrain.runs.events import Events
from reptrain.runs.pace import tokens_per_s
from reptrain.runs.parent import Parent
from reptrain.runs.records import read_record
from reptrain.tasks.console import TuningConsole
from reptrain.tasks.examples import ExampleBatches, example_order
from reptrain.tasks.files import TaskRows
from reptrain.tasks.pairs import Encoder, Pair
from reptrain.tasks.records import Chosen, SeedResult, SelectRecord, StepRecord, best_step, task_metrics
from reptrain.tasks.scoring import Scorer
from reptrain.terminal import StepDisplay
from reptrain.text import Tokenizer
from reptrain.training.batches import Batch
from reptrain.training.failures import failures_recorded
from reptrain.training.hooks import Request
from reptrain.training.loop import LoopEnd, run_steps
from reptrain.training.recorder import print_line
from reptrain.training.regularize import InputNoise
from reptrain.training.resume import note_event, resume
from reptrain.training.setup import build_engine
from reptrain.training.step import StepResult, Trainer


@dataclass(frozen=True)
class Task:
    """A model and a task, ready to fine-tune with any seed."""

    config: FinetuneConfig
    trained: SavedModel
    """The model to fine-tune."""
    tokenizer: Tokenizer
    encoder: Encoder
    rows: TaskRows
    world: World

    @property
    def model(self) -> ModelConfig:
        """The model's settings with the dropout of the fine-tuning."""
        model: ModelConfig = self.trained.config.model_copy(update={"dropout": self.config.model.dropout})
        return model

    @cached_property
    def train(self) -> list[Pair]:
        """The training examples as token ids."""
        return self._pairs(self.rows.train)

    @cached_property
    def select(self) -> list[Pair]:
        """The examples that choose the best checkpoint, as token ids."""
        return self._pairs(self.rows.select)

    def _pairs(self, rows: list[Any]) -> list[Pair]:
        return self.encoder.pairs([row.input for row in rows], [row.target for row in rows])

    @cached_property
    def scorer(self) -> Scorer:
        """Scores a model on the task's examples."""
        return Scorer(self.config.task, self.encoder, self.world, self.config.evaluate.batch_examples)

    @property
    def steps(self) -> StepPlan:
        """Examples by step."""
        return StepPlan(self.config.train.batch_windows, self.config.epochs * len(self.train))

    @property
    def micro_batch_rows(self) -> int:
        """Examples of one forward pass on one rank."""
        return self.config.micro_batch_windows(self.model, self.world.world_size)

    def batches(self, seed: int) -> ExampleBatches:
        """The training batches of a seed."""
        order = example_order(len(self.train), epochs=self.config.epochs, seed=seed)
        return ExampleBatches(
            self.train, order, self.steps, self.world, self.micro_batch_rows, self.encoder.in_one_row
        )

    def trainer(self, seed: int) -> Trainer:
        """The model under DeepSpeed, with the parent's weights or with fresh ones."""
        config = self.config
        model = build_model(self.model, vocab_size=self.trained.rows, seed=seed)
        if config.weights == "trained":
            self.trained.fill(model)
        return Trainer(
            engine=build_engine(config, model, world=self.world, micro_batch_windows=self.micro_batch_rows),
            world=self.world,
            seed=seed,
            make_example=self.scorer.objective.example,
            input_noise=InputNoise.of(config.regularize.input_noise_by, self.tokenizer),
            optimizer=config.optimizer,
            schedule=config.schedule,
            regularize=config.regularize,
        )


def tune_seed(
    task: Task, folder: Path, seed: int, parent: Parent, *, stop: StopRequest, header: str
) -> tuple[SeedResult | None, str | None]:
    """Fine-tune with one seed, or resume it.

    Args:
        task: The model and the task.
        folder: Folder of the seed.
        seed: Keys the order, the dropout masks and fresh weights.
        parent: Recorded in the folder.
        stop: Requests to stop.
        header: Printed before the first step of this call.

    Returns:
        The result; or None, and the request that stopped it.
    """
    world = task.world
    result = world.on_main(lambda: _read_result(folder))
    if result is not None:
        return result, None
    world.on_main(lambda: _make_folder(task, folder, parent))
    timeout_s = task.config.train.rank_timeout_seconds
    with failures_recorded(world, timeout_s=timeout_s, record=partial(_record_failure, folder)) as pulse:
        done, reason = _train(task, folder, seed, stop, pulse, header)
        if done < task.steps.num_steps:
            return None, reason
        result = _report(task, folder, seed)
        text = result.model_dump_json(indent=1)
        world.on_main(lambda: write_atomically(folder / "result.json", text))
        return result, None


def _train(
    task: Task, folder: Path, seed: int, stop: StopRequest, pulse: Callable[[], None], header: str
) -> LoopEnd:
    trainer = task.trainer(seed)
    trainer.engine.register_forward_pre_hook(lambda *_: pulse())
    with ExitStack() as resources:
        hooks = SeedHooks(task, trainer, folder, resources)
        if task.world.is_main and (seed == task.config.seed or hooks.first_step):
            print_line(header, aside=True)
        end = run_steps(trainer, task.batches(seed), hooks, first_step=hooks.first_step, stop=stop)
    trainer.engine.destroy()
    return end


def _record_failure(folder: Path, reason: str) -> None:
    steps = [record.step + 1 for record in task_metrics(folder).records() if isinstance(record, StepRecord)]
    note_event(Events(folder / "events.jsonl"), "failed", reason, max(steps, default=0))


class SeedHooks:
    """The hooks of one fine-tuning; resumes it when it is made.

    Args:
        task: The model and the task.
        trainer: The model under DeepSpeed.
        folder: Folder of the seed.
        resources: Closes the progress bar.
    """

    def __init__(self, task: Task, trainer: Trainer, folder: Path, resources: ExitStack) -> None:
        self._task, self._trainer, self._folder = task, trainer, folder
        self._metrics, self._num_steps = task_metrics(folder), task.steps.num_steps
        looks = max(1, round(1 / task.config.evaluate.every_fraction))
        self.evaluate_at: Set[int] = {-(-part * self._num_steps // looks) for part in range(1, looks + 1)}
        self.save_at: Set[int] = {self._num_steps}
        self.first_step, _ = resume(
            trainer,
            folder / "checkpoints",
            [self._metrics],
            events=Events(folder / "events.jsonl"),
            say=lambda text: print_line(text, aside=True),
        )
        self._console = self._open_console(resources) if task.world.is_main else None

    def _open_console(self, resources: ExitStack) -> TuningConsole:
        """The main rank's console with its progress bar."""
        label = f"seed {self._trainer.seed}"
        display = StepDisplay(sys.stderr, total=self._num_steps, done=self.first_step, label=label)
        before = [record for record in self._metrics.records() if isinstance(record, StepRecord)]
        return TuningConsole(
            self._folder,
            resources.enter_context(display),
            devices=self._task.world.world_size,
            before=before,
        )

    def record(self, batch: Batch, result: StepResult, *, lr: float, seconds: float) -> None:
        """Record a step that was applied."""
        if self._console is None or not result.applied:
            return
        record = StepRecord(
            step=batch.step,
            tokens_per_s=tokens_per_s(result.input_tokens + result.target_tokens, seconds),
            epoch=(batch.first_index + batch.windows) / len(self._task.train),
            examples=batch.windows,
            target_tokens=batch.loss_tokens,
            loss_nats=result.loss_nats,
            lr=lr,
            grad_norm=result.grad_norm,
            step_ms=1000 * seconds,
        )
        self._metrics.append(record)
        self._console.step(record)

    def not_finite(self, batch: Batch, result: StepResult) -> None:
        """End the fine-tuning.

        Raises:
            RunError: Always.
        """
        raise RunError(
            f"diverged at step {batch.step} of seed {self._trainer.seed}",
            got=f"loss {result.loss_nats}, gradient norm {result.grad_norm}",
            rule="loss and gradient must be finite",
            remedy="Lower optimizer.lr, and choose another --out.",
        )

    def evaluate(self, step: int) -> Request:
        """Score the examples that choose the best checkpoint; the best so far is saved."""
        task, engine = self._task, self._trainer.engine
        engine.eval()
        nats_N = task.scorer.nats(engine, task.select)
        engine.train()
        record = SelectRecord(
            step=step,
            epoch=min(step * task.steps.batch_windows / len(task.train), task.config.epochs),
            nats_per_token=float(nats_N.sum()) / sum(len(pair.target) for pair in task.select),
            nats_per_answer=float(nats_N.mean()),
        )
        if task.world.is_main:
            self._metrics.append(record)
            print_line(
                f"seed {self._trainer.seed}  step {step}/{self._num_steps}  epoch {record.epoch:.2f}"
                f"  select {record.nats_per_token:.4f} nats/token, {record.nats_per_answer:.3f} nats/answer",
                aside=True,
            )
        return Request(save=self._best_step() == step)

    def _best_step(self) -> int | None:
        best: int | None = self._task.world.on_main(lambda: best_step(self._metrics))
        return best

    def save(self, step: int) -> None:
        """Save a checkpoint; the best and the newest stay."""
        best = self._best_step()
        checkpoint.save(
            self._trainer.engine,
            self._folder / "checkpoints",
            step,
            world=self._task.world,
            records=[self._metrics.path],
            keep_last=1,
            keep=() if best is None else (best,),
        )


def _make_folder(task: Task, folder: Path, parent: Parent) -> None:
    """Write what makes the folder a trained model that every command takes."""
    folder.mkdir(exist_ok=True)
    special = task.encoder.special
    described = ImportedModel(
        model=task.model,
        start_id=special.start,
        end_ids=list(special.ends),
        window_tokens=task.trained.window_tokens,
        reading=task.encoder.reading,
    )
    text = dump_yaml(described.model_dump(mode="json"))
    write_atomically(folder / MODEL_FILE, f"# Fine-tuned by reptrain.\n{text}")
    write_atomically(folder / task.tokenizer.file_name, task.tokenizer.model_bytes)
    parent.write(folder)


def _report(task: Task, folder: Path, seed: int) -> SeedResult:
    """Score the best and the last checkpoint on the report rows."""
    metrics, steps, world = task_metrics(folder), task.steps.num_steps, task.world
    best = world.on_main(lambda: best_step(metrics))
    assert best is not None
    looks = {look.step: look for look in metrics.records() if isinstance(look, SelectRecord)}
    chosen: dict[int, Chosen] = {}
    for step in dict.fromkeys((best, steps)):
        model = open_saved_model(folder, step).load(without_capacity(task.model)).to(world.device)
        score, texts = task.scorer.score(model, task.rows.report)
        chosen[step] = Chosen(step=step, select_nats_per_token=looks[step].nats_per_token, report=score)
        if step == best:
            world.on_main(partial(_write_texts, task, folder, texts))
    return SeedResult(seed=seed, steps=steps, best=chosen[best], last=chosen[steps])


def _write_texts(task: Task, folder: Path, texts: list[str]) -> None:
    rows = zip(task.rows.report, texts, strict=True)
    shown = ({"input": row.input, "text": text, "answers": row.answers} for row, text in rows)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in shown]
    write_atomically(folder / "texts.jsonl", lines)


def _read_result(folder: Path) -> SeedResult | None:
    path = folder / "result.json"
    remedy = "Remove the file; the same command writes it again."
    return read_record(SeedResult, path, remedy=remedy) if path.exists() else None
