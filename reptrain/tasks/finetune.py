"""Fine-tuning on a task, once for each seed.

OUT/
  config.yaml      settings          parent.json       the model, its step, and its weights' fingerprint
  data.json        checksums, versions environment.json  versions, machine
  results.json     figures of every seed, and their means with intervals
  seed-N/          a trained model as `reptrain import` makes one, with the best and the last checkpoint,
                   metrics.jsonl, result.json, and texts.jsonl: what the best wrote
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

from reptrain import checkpoint
from reptrain.config.base import Frozen
from reptrain.config.finetune import FinetuneConfig
from reptrain.config.fingerprint import flatten
from reptrain.config.load import apply_overrides, dump_yaml, read_yaml, validate
from reptrain.config.model import ModelConfig
from reptrain.config.numerics import NUMERICS_VERSION
from reptrain.config.quantities import Budget
from reptrain.config.schedule import step_learning_rate
from reptrain.config.scheduled import RunPosition
from reptrain.distributed.precision import check_precision
from reptrain.distributed.stop import StopRequest, stop_requests
from reptrain.distributed.world import World, choose_device, describe, join
from reptrain.errors import ResumeError, RunError
from reptrain.files import write_atomically
from reptrain.generation.decoding import without_capacity
from reptrain.hub.saved_model import MODEL_FILE, ImportedModel, TrainedModel, open_trained
from reptrain.model import build_model
from reptrain.model.dropout import set_rates
from reptrain.plan import EpochPlan, StepPlan, plan_epochs, rank_rows
from reptrain.runs.pace import tokens_per_s
from reptrain.runs.parent import Parent, read_parent
from reptrain.runs.records import read_record
from reptrain.sizes import count_parameters
from reptrain.tasks.console import TuningConsole
from reptrain.tasks.files import TaskRows, read_rows, read_task
from reptrain.tasks.pairs import Encoder, Pair, pack, widths_of
from reptrain.tasks.records import (
    Chosen,
    Results,
    SeedResult,
    SelectRecord,
    StepRecord,
    best_step,
    over_seeds,
    task_metrics,
)
from reptrain.tasks.scoring import Scorer
from reptrain.terminal import StepDisplay
from reptrain.text import Tokenizer
from reptrain.training.optimizers import set_learning_rate
from reptrain.training.recorder import print_line, stated_attention
from reptrain.training.regularize import InputNoise, Settings, set_weight_decay
from reptrain.training.setup import build_engine
from reptrain.training.step import train_step
from reptrain.training.summary import facts_text, machine_facts

# The same fine-tuning by another road.
_MAY_DIFFER = (
    "task.data", "train.device", "train.micro_batch_windows", "train.zero_stage", "train.compile",
    "train.activation_checkpointing", "train.rank_timeout_seconds", "evaluate.batch_examples",
)  # fmt: skip


class Outcome(NamedTuple):
    """How a call of `finetune` ended."""

    results: Results | None
    """None where it was stopped."""
    reason: str | None
    """What asked it to stop."""


def load_finetune(task: Path, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """The settings of a fine-tuning on a task: the task's file, and texts KEY=VALUE.

    Raises:
        ConfigError: If anything in them is wrong.
    """
    return validate(FinetuneConfig, apply_overrides({"task": read_task(task)}, overrides))


def finetune(
    run: Path,
    config: FinetuneConfig,
    out: Path,
    *,
    seeds: int = 1,
    step: int | None = None,
    tokenizer: Path | None = None,
    stop: StopRequest | None = None,
) -> Outcome:
    """Fine-tune a model on a task with several seeds, and tell how the best and the last checkpoint do.

    Called again it goes on: seeds that are done stay, and one that was interrupted goes on from its newest
    checkpoint, the best so far.

    Args:
        run: A run folder, one of its checkpoints, an imported model, or a Hugging Face folder.
        config: The settings. Under `deepspeed` or `torchrun` every rank passes the same.
        out: The folder to write; it may exist if it holds the same settings.
        seeds: How many, from `config.seed` on.
        step: Of a run, whose checkpoint; None takes the newest that is whole.
        tokenizer: Its file, where the model's own is not found.
        stop: Where requests to stop are noted already; None catches signals during the call.

    Raises:
        ReptrainError: For a model or a task that cannot be used, before anything is written.
        ResumeError: If ``out`` holds another fine-tuning.
        RunError: If the loss or the gradient is no longer finite.
    """
    device = choose_device(config.train.device)
    config = config.on_device(device.type)
    check_precision(config.train.precision, device)
    trained = open_trained(run, step)
    pieces = trained.tokenizer(tokenizer)
    encoder = Encoder.of(trained, pieces, config.task.separator, config.limits)
    rows = read_rows(config.task, config.limits, encoder.fits)
    with ExitStack() as held:
        if stop is None:
            stop = held.enter_context(stop_requests())
        world = join(device, timeout_s=config.train.rank_timeout_seconds)
        parent = Parent(path=str(trained.path.resolve()), step=trained.step, weights=trained.fingerprint())
        longest = config.limits.input_tokens + config.limits.target_tokens

        def enter() -> None:
            attention = stated_attention(trained.config, world.device, longest)
            _enter(out, config, parent, rows, describe(world, config.train, attention))

        world.on_main(enter)
        tuning = _Tuning.of(config, trained, pieces, encoder, rows, world)
        found = []
        for seed in range(config.seed, config.seed + seeds):
            result, reason = tuning.run(out / f"seed-{seed}", seed, parent, stop)
            if result is None:
                return Outcome(None, reason)
            found.append(result)
    results = tuning.results(found, parent)
    world.on_main(lambda: results.write(out))
    return Outcome(results, None)


class _Data(Frozen):
    """`data.json`."""

    files: dict[str, str]
    """SHA-256 of each file of the task."""
    numerics_version: int = 1
    """`NUMERICS_VERSION` of the version that started the fine-tuning."""


def _enter(
    out: Path, config: FinetuneConfig, parent: Parent, rows: TaskRows, environment: dict[str, Any]
) -> None:
    """Make the folder, or refuse one of another fine-tuning by name."""
    data = _Data(files=rows.files, numerics_version=NUMERICS_VERSION)
    if (out / "config.yaml").exists():
        before = validate(FinetuneConfig, read_yaml(out / "config.yaml"))
        there, here = (dict(flatten(one.model_dump(mode="json"))) for one in (before, config))
        known = read_parent(out)
        there |= {"parent's weights": known.weights if known else None}
        here |= {"parent's weights": parent.weights}
        known_data = read_record(_Data, out / "data.json", remedy="Choose another --out.")
        _refuse_other_numerics(out, known_data.numerics_version)
        there |= {"files": known_data.files}
        here |= {"files": data.files}
        for key in sorted(there.keys() | here.keys()):
            if key not in _MAY_DIFFER and there.get(key) != here.get(key):
                raise ResumeError(
                    key,
                    got=here.get(key),
                    rule=f"must be {there.get(key)}, as in {out}",
                    remedy="Choose another --out.",
                )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            f"folder {out}",
            got="other files there",
            rule="must be new, empty, or a fine-tuning's",
            remedy="Choose another --out.",
        )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "data.json", data.model_dump_json(indent=1) + "\n")
    write_atomically(out / "environment.json", json.dumps(environment, indent=1) + "\n")
    parent.write(out)
    # Last: where it is, all is.
    settings = config.model_dump(mode="json")
    settings["task"]["data"] = str(Path(settings["task"]["data"]).absolute())
    write_atomically(out / "config.yaml", dump_yaml(settings))


def _refuse_other_numerics(out: Path, found: int) -> None:
    if found != NUMERICS_VERSION:
        raise ResumeError(
            f"fine-tuning {out}",
            got=f"numerics_version {found}",
            rule=f"must have been started with numerics_version {NUMERICS_VERSION} to be resumed here",
            remedy="The same settings now compute something else (docs/decisions/versions.md): choose another"
            " --out, or use the version of reptrain that started it (environment.json).",
        )


@dataclass(frozen=True)
class _Tuning:
    """What all seeds have in common."""

    config: FinetuneConfig
    trained: TrainedModel
    model: ModelConfig
    tokenizer: Tokenizer
    encoder: Encoder
    rows: TaskRows
    train: list[Pair]
    select: list[Pair]
    scorer: Scorer
    world: World

    @classmethod
    def of(
        cls,
        config: FinetuneConfig,
        trained: TrainedModel,
        tokenizer: Tokenizer,
        encoder: Encoder,
        rows: TaskRows,
        world: World,
    ) -> _Tuning:
        train, select = (
            encoder.pairs([row.input for row in part], [row.target for row in part])
            for part in (rows.train, rows.select)
        )
        return cls(
            config,
            trained,
            trained.config.model_copy(update={"dropout": config.model.dropout}),
            tokenizer,
            encoder,
            rows,
            train,
            select,
            Scorer(config.task, encoder, world, config.evaluate.batch_examples),
            world,
        )

    @property
    def plan(self) -> StepPlan:
        """Examples by step."""
        return StepPlan(self.config.train.batch_windows, self.config.epochs * len(self.train))

    def order(self, seed: int) -> EpochPlan:
        """Which example comes when: all of them in each epoch, in an order of its own."""
        epochs = Budget(epochs=Fraction(self.config.epochs))
        return plan_epochs(
            unique_tokens=len(self.train),
            window_tokens=1,
            budget=epochs,
            order="reshuffle",
            cut="fixed",
            seed=seed,
        )

    def run(
        self, folder: Path, seed: int, parent: Parent, stop: StopRequest
    ) -> tuple[SeedResult | None, str | None]:
        """One fine-tuning to its end; or None, and what asked it to stop."""
        done = self.world.on_main(lambda: _read_result(folder))
        if done is not None:
            return done, None
        self.world.on_main(lambda: self._make_folder(folder, parent))
        reason = self._train(folder, seed, stop)
        if reason is not None:
            return None, reason
        result = self._judge(folder, seed)
        self.world.on_main(lambda: write_atomically(folder / "result.json", result.model_dump_json(indent=1)))
        return result, None

    def _make_folder(self, folder: Path, parent: Parent) -> None:
        """What makes it a trained model that every command takes."""
        folder.mkdir(exist_ok=True)
        special = self.encoder.special
        described = ImportedModel(
            model=self.model,
            start_id=special.start,
            end_ids=list(special.ends),
            window_tokens=self.trained.window_tokens,
            reading=self.encoder.reading,
        )
        text = dump_yaml(described.model_dump(mode="json"))
        write_atomically(folder / MODEL_FILE, f"# Fine-tuned by reptrain.\n{text}")
        write_atomically(folder / self.tokenizer.file_name, self.tokenizer.model_bytes)
        parent.write(folder)

    def _train(self, folder: Path, seed: int, stop: StopRequest) -> str | None:
        """Train to the end; or until asked to stop, which is returned."""
        config, world, plan = self.config, self.world, self.plan
        model = build_model(self.model, vocab_size=self.trained.rows, seed=seed)
        if config.weights == "trained":
            self.trained.fill(model)
        rows = config.micro_batch_windows(self.model, world.world_size)
        engine = build_engine(config, model, world=world, micro_batch_windows=rows)
        metrics, checkpoints = task_metrics(folder), folder / "checkpoints"
        found = checkpoint.find(checkpoints, world=world)
        done = 0
        if found.path is not None and found.manifest is not None:
            checkpoint.load(engine, found.path, found.manifest)
            done = found.manifest.step
        world.on_main(lambda: checkpoint.restore_records(found, [metrics]))
        looks = max(1, round(1 / config.evaluate.every_fraction))
        marks = {-(-part * plan.num_steps // looks) for part in range(1, looks + 1)}
        noise, order = InputNoise.of(config, self.tokenizer), self.order(seed)
        reason = None
        with ExitStack() as held:
            console = self._console(folder, seed, done, metrics, held)
            while done < plan.num_steps and reason is None:
                record = self._step(engine, order, noise, seed, done)
                done += 1
                reason = stop.reason(world)
                best = None
                if world.is_main:
                    metrics.append(record)
                if console is not None:
                    console.step(record)
                if done in marks:
                    best = self._look(engine, metrics, seed, done)
                if best == done or done == plan.num_steps or reason is not None:
                    best = world.on_main(lambda: best_step(metrics))
                    checkpoint.save(
                        engine,
                        checkpoints,
                        done,
                        world=world,
                        records=[metrics.path],
                        keep_last=1,
                        keep=() if best is None else (best,),
                    )
        engine.destroy()
        return reason if done < plan.num_steps else None

    def _console(
        self, folder: Path, seed: int, done: int, metrics: Any, held: ExitStack
    ) -> TuningConsole | None:
        """The main rank's console with its progress bar, until ``held`` is left; None on the others."""
        if not self.world.is_main:
            return None
        steps = self.plan.num_steps
        display = StepDisplay(sys.stderr, total=steps, done=done, label=f"seed {seed}")
        before = [record for record in metrics.records() if isinstance(record, StepRecord)]
        console = TuningConsole(
            folder, held.enter_context(display), devices=self.world.world_size, before=before
        )
        if seed == self.config.seed or done:
            print_line(self.header(folder.parent), aside=True)
        return console

    def header(self, out: Path) -> str:
        """What is about to be tuned on what."""
        config, plan = self.config, self.plan
        count = count_parameters(self.model, self.trained.rows)
        at = "" if self.trained.step is None else f" at step {self.trained.step}"
        sizes = [
            f"{len(part):,} to {use}" for part, use in ((self.train, "train on"), (self.select, "choose by"))
        ]
        micro = config.micro_batch_windows(self.model, self.world.world_size)
        facts = [
            ("model", f"{self.trained.path}{at}, {config.weights} weights, {count.total:,} parameters"),
            ("task", f"{config.task.name} ({config.task.kind}) in {config.task.data}"),
            ("examples", f"{', '.join(sizes)}, {len(self.rows.report):,} to report"),
            ("epochs", str(config.epochs)),
            ("steps", f"{plan.num_steps:,} for each seed"),
            ("batch", f"{config.train.batch_windows} examples, {micro} at a time"),
            *machine_facts(config.train, self.world),
            ("output", str(out)),
        ]
        return f"fine-tuning\n{facts_text(facts)}"

    def _look(self, engine: Any, metrics: Any, seed: int, done: int) -> int | None:
        """Score the examples that choose; returns the best step so far."""
        engine.eval()
        nats_N = self.scorer.nats(engine, self.select)
        engine.train()
        record = SelectRecord(
            step=done,
            epoch=min(done * self.plan.batch_windows / len(self.train), self.config.epochs),
            nats_per_token=float(nats_N.sum()) / sum(len(pair.target) for pair in self.select),
            nats_per_answer=float(nats_N.mean()),
        )
        if self.world.is_main:
            metrics.append(record)
            print_line(
                f"seed {seed}  step {done}/{self.plan.num_steps}  epoch {record.epoch:.2f}"
                f"  select {record.nats_per_token:.4f} nats/token, {record.nats_per_answer:.3f} nats/answer",
                aside=True,
            )
        return self.world.on_main(lambda: best_step(metrics))

    def _step(self, engine: Any, order: EpochPlan, noise: InputNoise, seed: int, step: int) -> StepRecord:
        config, world, plan = self.config, self.world, self.plan
        first, count = plan.window_range(step)
        progress = RunPosition(step, first, plan.total_windows, Fraction(first, len(self.train)))
        rate = step_learning_rate(first, first + count, plan.total_windows, config.optimizer, config.schedule)
        settings = Settings.at(config, progress)
        set_learning_rate(engine.optimizer, rate)
        set_weight_decay(engine.optimizer, settings.weight_decay)
        set_rates(engine.module, progress)
        began = time.perf_counter()
        while True:
            micro_batches, tokens, target_tokens = self._batch(order, first, count)
            result = train_step(
                engine,
                micro_batches,
                world=world,
                seed=seed,
                step=step,
                loss_tokens=target_tokens,
                objective=self.scorer.objective,
                settings=settings,
                input_noise=noise,
            )
            is_finite = math.isfinite(result.loss_nats)
            # fp16 tries again with a smaller scale.
            if config.train.precision != "fp16" or result.applied or not is_finite:
                break
        if not (result.applied and is_finite):
            raise RunError(
                f"diverged at step {step} of seed {seed}",
                got=f"loss {result.loss_nats}, gradient norm {result.grad_norm}",
                rule="loss and gradient must be finite",
                remedy="Lower optimizer.lr, and choose another --out.",
            )
        seconds = time.perf_counter() - began
        return StepRecord(
            step=step,
            tokens_per_s=tokens_per_s(tokens, seconds),
            epoch=(first + count) / len(self.train),
            examples=count,
            target_tokens=target_tokens,
            loss_nats=result.loss_nats,
            lr=rate,
            grad_norm=result.grad_norm,
            step_ms=1000 * seconds,
        )

    def _batch(self, order: EpochPlan, first: int, count: int) -> tuple[list[Any], int, int]:
        """This rank's micro-batches of a step, and of all ranks the tokens, and the target tokens."""
        number_N = order.locate(range(first, first + count)).start
        chosen = [self.train[number] for number in number_N]
        # The step's longest gives the width, so that the micro-batch changes nothing.
        in_one_row = self.encoder.in_one_row
        widths = widths_of(chosen, in_one_row=in_one_row)
        rows_MB = rank_rows(
            self.config.train.batch_windows,
            rank=self.world.rank,
            world_size=self.world.world_size,
            micro_batch_windows=self.config.micro_batch_windows(self.model, self.world.world_size),
        )
        micro_batches = []
        for row_B in rows_MB:
            number_B = number_N.take(row_B, mode="clip")
            number_B[row_B >= count] = -1
            micro_batches.append(pack(self.train, number_B, row_B, in_one_row=in_one_row, widths=widths))
        target_tokens = sum(len(pair.target) for pair in chosen)
        return micro_batches, target_tokens + sum(len(pair.source) for pair in chosen), target_tokens

    def _judge(self, folder: Path, seed: int) -> SeedResult:
        """The best and the last checkpoint on the rows that are told of."""
        metrics, steps = task_metrics(folder), self.plan.num_steps
        best = self.world.on_main(lambda: best_step(metrics))
        assert best is not None
        looks = {look.step: look for look in metrics.records() if isinstance(look, SelectRecord)}
        found: dict[int, Chosen] = {}
        for step in dict.fromkeys((best, steps)):
            model = open_trained(folder, step).load(without_capacity(self.model)).to(self.world.device)
            score, texts = self.scorer.score(model, self.rows.report)
            found[step] = Chosen(step=step, select_nats_per_token=looks[step].nats_per_token, report=score)
            if step == best:
                self.world.on_main(lambda texts=texts: self._write_texts(folder, texts))
        return SeedResult(seed=seed, steps=steps, best=found[best], last=found[steps])

    def _write_texts(self, folder: Path, texts: list[str]) -> None:
        rows = zip(self.rows.report, texts, strict=True)
        shown = ({"input": row.input, "text": text, "answers": row.answers} for row, text in rows)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in shown]
        write_atomically(folder / "texts.jsonl", lines)

    def results(self, found: list[SeedResult], parent: Parent) -> Results:
        """All seeds together."""
        weights: Literal["trained", "fresh"] = self.config.weights
        at = "" if parent.step is None else f" at step {parent.step}"
        return Results(
            task=self.config.task.name,
            kind=self.config.task.kind,
            parent=f"{parent.path}{at}",
            weights=weights,
            examples={
                "train": len(self.train),
                "select": len(self.select),
                "report": len(self.rows.report),
            },
            cut={
                "inputs": sum(pair.source_is_cut for pair in self.train),
                "targets": sum(pair.target_is_cut for pair in self.train),
            },
            left_out=self.rows.left_out,
            seeds=found,
            mean=over_seeds(found),
        )


def _read_result(folder: Path) -> SeedResult | None:
    path = folder / "result.json"
    remedy = "Remove the file; the same command writes it again."
    return read_record(SeedResult, path, remedy=remedy) if path.exists() else None
