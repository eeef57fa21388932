"""Fine-tuning on a task, once for each seed.

OUT/
  config.yaml      settings          parent.json       the model, its step, and its weights' fingerprint
  data.json        checksums, versions environment.json  versions, machine
  results.json     scores of every seed, and their means with intervals
  seed-N/          a trained model as `reptrain import` makes one, with the best and the last checkpoint,
                   metrics.jsonl, result.json, and texts.jsonl: the outputs of the best
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from reptrain.config.base import Frozen
from reptrain.config.finetune import FinetuneConfig
from reptrain.config.fingerprint import flatten
from reptrain.config.load import apply_overrides, dump_yaml, read_yaml, validate
from reptrain.config.numerics import NUMERICS_VERSION
from reptrain.distributed.precision import check_precision
from reptrain.distributed.stop import StopRequest, stop_requests
from reptrain.distributed.world import choose_device, describe, join
from reptrain.errors import ResumeError, RunError
from reptrain.files import write_atomically
from reptrain.hub.saved_model import open_saved_model
from reptrain.runs.parent import Parent, read_parent
from reptrain.runs.records import read_record
from reptrain.sizes import count_parameters
from reptrain.tasks.files import TaskRows, read_rows, read_task
from reptrain.tasks.pairs import Encoder
from reptrain.tasks.records import Results, SeedResult, over_seeds
from reptrain.tasks.tuning import Task, tune_seed
from reptrain.training.recorder import stated_attention
from reptrain.training.summary import facts_text, machine_facts

DATA_FILE = "data.json"
# Settings that do not change the results.
_MAY_DIFFER = (
    "task.data", "train.device", "train.micro_batch_windows", "train.zero_stage", "train.offload_optimizer",
    "train.offload_parameters", "train.overlap_communication", "train.bucket_elements", "train.compile",
    "train.activation_checkpointing", "train.poll_stop_steps", "train.rank_timeout_seconds",
    "evaluate.batch_examples",
)  # fmt: skip


class Outcome(NamedTuple):
    """The outcome of a call of `finetune`."""

    results: Results | None
    """None if it was stopped."""
    reason: str | None
    """The request to stop."""


def load_finetune(task: Path, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Load the settings of a fine-tuning: the task's file, and overrides KEY=VALUE.

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
    """Fine-tune a model on a task with several seeds; score the best and the last checkpoint of each.

    A second call resumes: finished seeds are kept, and an interrupted one continues from its
    newest checkpoint.

    Args:
        run: A run folder, one of its checkpoints, an imported model, or a Hugging Face folder.
        config: The settings. Under `deepspeed` or `torchrun` every rank passes the same.
        out: The folder to write; it may exist if it holds the same settings.
        seeds: Number of seeds, starting at `config.seed`.
        step: Checkpoint of the run; None takes the newest undamaged one.
        tokenizer: Tokenizer file, if the model's own is missing.
        stop: Collects requests to stop; None handles signals during the call.

    Raises:
        ReptrainError: If the model or the task cannot be used; nothing is written then.
        ResumeError: If ``out`` holds another fine-tuning.
        RunError: If the loss or the gradient is no longer finite.
    """
    device = choose_device(config.train.device)
    config = config.on_device(device.type)
    check_precision(config.train.precision, device)
    trained = open_saved_model(run, step)
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
        task = Task(config, trained, pieces, encoder, rows, world)
        header, done = _header(task, out), []
        for seed in range(config.seed, config.seed + seeds):
            result, reason = tune_seed(task, out / f"seed-{seed}", seed, parent, stop=stop, header=header)
            if result is None:
                return Outcome(None, reason)
            done.append(result)
    results = _results(task, done, parent)
    world.on_main(lambda: results.write(out))
    return Outcome(results, None)


class TaskData(Frozen):
    """`data.json`."""

    files: dict[str, str]
    """SHA-256 of each file of the task."""
    numerics_version: int = 1
    """`NUMERICS_VERSION` of the version that started the fine-tuning."""


def _enter(
    out: Path, config: FinetuneConfig, parent: Parent, rows: TaskRows, environment: dict[str, Any]
) -> None:
    """Create the folder, or check that it holds this fine-tuning; an error names the key that differs."""
    data = TaskData(files=rows.files, numerics_version=NUMERICS_VERSION)
    if (out / "config.yaml").exists():
        before = validate(FinetuneConfig, read_yaml(out / "config.yaml"))
        there, here = (dict(flatten(one.model_dump(mode="json"))) for one in (before, config))
        known = read_parent(out)
        there |= {"parent's weights": known.weights if known else None}
        here |= {"parent's weights": parent.weights}
        known_data = read_record(TaskData, out / DATA_FILE, remedy="Choose another --out.")
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
            got="a folder with other files",
            rule="must be new, empty, or the folder of a fine-tuning",
            remedy="Choose another --out.",
        )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / DATA_FILE, data.model_dump_json(indent=1) + "\n")
    write_atomically(out / "environment.json", json.dumps(environment, indent=1) + "\n")
    parent.write(out)
    # Written last: if it exists, the folder is complete.
    settings = config.model_dump(mode="json")
    settings["task"]["data"] = str(Path(settings["task"]["data"]).absolute())
    write_atomically(out / "config.yaml", dump_yaml(settings))


def _refuse_other_numerics(out: Path, version: int) -> None:
    if version != NUMERICS_VERSION:
        raise ResumeError(
            f"fine-tuning {out}",
            got=f"numerics_version {version}",
            rule=f"must have been started with numerics_version {NUMERICS_VERSION} to be resumed here",
            remedy="The same settings now give other results (docs/decisions/versions.md): choose another"
            " --out, or use the version of reptrain that started it (environment.json).",
        )


def _header(task: Task, out: Path) -> str:
    """The lines that are printed before the first step."""
    config, trained = task.config, task.trained
    at = "" if trained.step is None else f" at step {trained.step}"
    parameters = count_parameters(task.model, trained.rows).total
    facts = [
        ("model", f"{trained.path}{at}, {config.weights} weights, {parameters:,} parameters"),
        ("task", f"{config.task.name} ({config.task.kind}) in {config.task.data}"),
        (
            "examples",
            f"{len(task.train):,} to train on, {len(task.select):,} to choose by,"
            f" {len(task.rows.report):,} to report",
        ),
        ("epochs", str(config.epochs)),
        ("steps", f"{task.steps.num_steps:,} for each seed"),
        ("batch", f"{config.train.batch_windows} examples, {task.micro_batch_rows} at a time"),
        *machine_facts(config.train, task.world),
        ("output", str(out)),
    ]
    return f"fine-tuning\n{facts_text(facts)}"


def _results(task: Task, seeds: list[SeedResult], parent: Parent) -> Results:
    """The results of all seeds."""
    at = "" if parent.step is None else f" at step {parent.step}"
    return Results(
        task=task.config.task.name,
        kind=task.config.task.kind,
        parent=f"{parent.path}{at}",
        weights=task.config.weights,
        examples={
            "train": len(task.train),
            "select": len(task.select),
            "report": len(task.rows.report),
        },
        cut={
            "inputs": sum(pair.source_is_cut for pair in task.train),
            "targets": sum(pair.target_is_cut for pair in task.train),
        },
        left_out=task.rows.left_out,
        seeds=seeds,
        mean=over_seeds(seeds),
    )
