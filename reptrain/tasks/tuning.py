"""One fine-tuning by the training loop, and its scores at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from reptrain.config.finetune import FinetuneConfig
from reptrain.config.model import ModelConfig
from reptrain.distributed.partition import partitioned, release_partitions
from reptrain.distributed.stop import StopRequest
from reptrain.distributed.world import World
from reptrain.files import write_atomically
from reptrain.generation.decoding import without_capacity
from reptrain.hub.imported_model import ImportedModel
from reptrain.hub.saved_model import SavedModel, open_saved_model
from reptrain.model import Decoder, EncoderDecoder
from reptrain.plan import StepPlan
from reptrain.runs.events import Events
from reptrain.runs.parent import Parent
from reptrain.runs.records import JsonLines, read_record
from reptrain.tasks.console import TuningRecorder
from reptrain.tasks.examples import ExampleBatches, example_order
from reptrain.tasks.files import TaskRows
from reptrain.tasks.pairs import Encoder, Pair
from reptrain.tasks.records import Chosen, SeedResult, SelectRecord, StepRecord, best_step, task_metrics
from reptrain.tasks.scoring import Scorer
from reptrain.terminal import StepDisplay
from reptrain.text import Tokenizer
from reptrain.training.checkpoints import Checkpoints, reserve_copy
from reptrain.training.failures import failures_recorded
from reptrain.training.initial_weights import InitialWeights
from reptrain.training.loop import LoopEnd, run_steps
from reptrain.training.masked_inputs import MaskedInputs
from reptrain.training.recorder import print_line
from reptrain.training.regularize import InputNoise
from reptrain.training.resume import note_event, resume
from reptrain.training.setup import build_engine
from reptrain.training.step import Trainer


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
        batch_examples, partitioned = self.config.evaluate.batch_examples, self.is_partitioned
        return Scorer(self.config.task, self.encoder, self.world, batch_examples, partitioned)

    @property
    def is_partitioned(self) -> bool:
        """Whether no rank holds the whole model."""
        return self.config.train.zero_stage == 3

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
        parent = self.trained if config.weights == "trained" else None
        weights = InitialWeights(self.model, self.trained.rows, seed, parent)
        return Trainer(
            engine=build_engine(config, weights, world=self.world, micro_batch_windows=self.micro_batch_rows),
            world=self.world,
            seed=seed,
            make_example=self.scorer.objective.example,
            input_noise=InputNoise.of(config.regularize, self.tokenizer),
            masked_inputs=MaskedInputs.of(config.regularize, self.tokenizer),
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
    trainer, metrics = task.trainer(seed), task_metrics(folder)
    trainer.engine.register_forward_pre_hook(lambda *_: pulse())
    first_step = resume(
        trainer,
        folder / "checkpoints",
        [metrics],
        events=Events(folder / "events.jsonl"),
        say=lambda text: print_line(text, aside=True),
    ).step
    evaluator, say = TaskEvaluator(task, trainer, metrics), partial(print_line, aside=True)
    with ExitStack() as resources:
        checkpoints = Checkpoints(
            trainer,
            folder / "checkpoints",
            [metrics],
            steps={task.steps.num_steps},
            keep_last=1,
            copy=reserve_copy("auto", trainer, evaluator.steps, done=first_step, say=say),
            pulse=pulse,
            say=say,
        )
        resources.enter_context(checkpoints)
        recorder = None
        if task.world.is_main:
            recorder = _open_recorder(task, folder, seed, first_step, resources)
            if seed == task.config.seed or first_step:
                print_line(header, aside=True)
        end = run_steps(
            trainer,
            task.batches(seed),
            recorder=recorder,
            evaluator=evaluator,
            checkpoints=checkpoints,
            first_step=first_step,
            stop=stop,
            poll_stop_steps=task.config.train.poll_stop_steps,
        )
    trainer.engine.destroy()
    release_partitions(trainer.engine.module)
    return end


def _open_recorder(
    task: Task, folder: Path, seed: int, first_step: int, resources: ExitStack
) -> TuningRecorder:
    """The main rank's recorder with its progress bar."""
    display = StepDisplay(sys.stderr, total=task.steps.num_steps, done=first_step, label=f"seed {seed}")
    return TuningRecorder(
        folder,
        resources.enter_context(display),
        devices=task.world.world_size,
        examples=len(task.train),
    )


def _record_failure(folder: Path, reason: str) -> None:
    steps = [record.step + 1 for record in task_metrics(folder).records() if isinstance(record, StepRecord)]
    note_event(Events(folder / "events.jsonl"), "failed", reason, max(steps, default=0))


class TaskEvaluator:
    """Computes the loss on the selection split, which chooses the best checkpoint.

    Args:
        task: The model and the task.
        trainer: The model under DeepSpeed.
        metrics: The seed's records.
    """

    stop_early: str | None = None
    """A fine-tuning takes all its steps."""

    def __init__(self, task: Task, trainer: Trainer, metrics: JsonLines[Any]) -> None:
        self._task, self._trainer, self._metrics = task, trainer, metrics
        num_steps, looks = task.steps.num_steps, max(1, round(1 / task.config.evaluate.every_fraction))
        self.steps: Set[int] = {-(-part * num_steps // looks) for part in range(1, looks + 1)}
        self.keep: Set[int] = self._best()

    def _best(self) -> Set[int]:
        """The best step so far, as a set; empty without an evaluation."""
        best: int | None = self._task.world.on_main(lambda: best_step(self._metrics))
        return frozenset() if best is None else {best}

    def evaluate(self, step: int) -> None:
        """Compute and record the loss; the checkpoint of the best step so far is kept."""
        task, engine, seed = self._task, self._trainer.engine, self._trainer.seed
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
                f"seed {seed}  step {step}/{task.steps.num_steps}  epoch {record.epoch:.2f}"
                f"  select {record.nats_per_token:.4f} nats/token, {record.nats_per_answer:.3f} nats/answer",
                aside=True,
            )
        self.keep = self._best()


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
    described.write(folder, made_by="Fine-tuned")
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
        with _saved(task, folder, step) as model:
            score, texts = task.scorer.score(model, task.rows.report)
        chosen[step] = Chosen(step=step, select_nats_per_token=looks[step].nats_per_token, report=score)
        if step == best:
            world.on_main(partial(_write_texts, task, folder, texts))
    return SeedResult(seed=seed, steps=steps, best=chosen[best], last=chosen[steps])


@contextmanager
def _saved(task: Task, folder: Path, step: int) -> Iterator[Decoder | EncoderDecoder]:
    """The model of a checkpoint, in evaluation mode on the device."""
    saved, config = open_saved_model(folder, step), without_capacity(task.model)
    if not task.is_partitioned:
        yield saved.load(config).to(task.world.device)
        return
    model = saved.on_meta(config)
    with partitioned(model, lambda name, parameter: saved.read({name: parameter}), task.world) as model:
        saved.fill_buffers(model)
        yield model


def _write_texts(task: Task, folder: Path, texts: list[str]) -> None:
    rows = zip(task.rows.report, texts, strict=True)
    shown = ({"input": row.input, "text": text, "answers": row.answers} for row, text in rows)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in shown]
    write_atomically(folder / "texts.jsonl", lines)


def _read_result(folder: Path) -> SeedResult | None:
    path = folder / "result.json"
    remedy = "Remove the file; the same command writes it again."
    return read_record(SeedResult, path, remedy=remedy) if path.exists() else None
