"""The audit of a fine-tuning run: which examples entered the model, and how often.

Every step of fine-tuning is a function of the task's files, the settings and the seed. The audit rebuilds the
batches on the CPU and compares their input digests with those that the model computed. The checksums in
data.json identify the task's files. The records are in metrics.jsonl, whose lines are not a hash chain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from reptrain.auditing.audit import evidence
from reptrain.config.finetune import FinetuneConfig
from reptrain.config.load import read_yaml, validate
from reptrain.distributed.world import World
from reptrain.errors import ReptrainError, RunError
from reptrain.hub.saved_model import open_saved_model
from reptrain.model import DropoutContext
from reptrain.plan import StepPlan
from reptrain.runs.records import FrozenRecord, read_record
from reptrain.tasks.examples import ExampleBatches, example_order
from reptrain.tasks.files import read_rows
from reptrain.tasks.finetune import DATA_FILE, TaskData
from reptrain.tasks.pairs import Encoder, Pair, SourceTarget
from reptrain.tasks.records import StepRecord, seed_folders, task_metrics
from reptrain.text import Tokenizer
from reptrain.training.batches import Batch
from reptrain.training.masked_inputs import MaskedInputs
from reptrain.training.rebuilt_inputs import example_digests
from reptrain.training.regularize import InputNoise, Settings

_HERE = World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
_LISTED = 10
_NEW = "Fine-tune again, into another folder."


class SeedAudit(FrozenRecord):
    """The audit of one seed."""

    seed: int
    """The seed."""
    exact: bool
    """Whether every step had the inputs that follow from the task, the settings and the seed."""
    complete: bool
    """Whether all steps were taken."""
    steps: int
    """Steps recorded."""
    exposures: dict[int, int]
    """Training examples by number of exposures."""
    problems: tuple[str, ...] = ()
    """The first problems."""
    cannot_say: str | None = None
    """Damaged or missing evidence."""

    def text(self) -> str:
        """Lines of text."""
        counts = ", ".join(
            f"{examples:,} examples {times:,} time{'s' * (times != 1)}"
            for times, examples in self.exposures.items()
        )
        lines = [f"seed {self.seed}: {self.steps:,} steps; {counts or 'no examples'}"]
        lines += [f"  {problem}" for problem in [self.cannot_say, *self.problems] if problem]
        return "\n".join(lines)


class FinetuneAudit(FrozenRecord):
    """The audit of a fine-tuning run."""

    exact: bool
    """Whether every seed is exact."""
    complete: bool
    """Whether every seed took all its steps."""
    level: Literal["inputs"] = "inputs"
    """The level of the audit: everything that entered the model was compared."""
    seeds: tuple[SeedAudit, ...]
    """The seeds."""

    @property
    def exit_code(self) -> int:
        """0 exact, 1 not exact, 4 cannot say."""
        return 4 if any(seed.cannot_say for seed in self.seeds) else int(not self.exact)

    def text(self) -> str:
        """The report as lines of text."""
        verdicts = {
            0: "exact" if self.complete else "exact so far, not complete",
            1: "not exact",
            4: "cannot say: damaged or missing evidence",
        }
        level = "level inputs: input ids, targets, their weights and attention masks of every step"
        return "\n".join([verdicts[self.exit_code], *(seed.text() for seed in self.seeds), level])


def audit_finetuning(folder: Path) -> FinetuneAudit:
    """Audit every seed of a fine-tuning run, or one.

    Args:
        folder: The folder of a fine-tuning run, or of one of its seeds.

    Raises:
        CannotSayError: If the settings or the task's files are damaged, missing, or differ from those used.
        RunError: If no seed has started.
    """
    out = folder if (folder / DATA_FILE).exists() else folder.parent
    seeds = [folder] if out != folder else seed_folders(out)
    if not seeds:
        raise RunError(
            f"fine-tuning {out}",
            got="no seed",
            rule="must have at least one seed",
            remedy="Run `reptrain finetune`.",
        )
    for seed in seeds:
        _seed_of(seed)
    with evidence():
        config = validate(FinetuneConfig, read_yaml(out / "config.yaml"))
        data = read_record(TaskData, out / DATA_FILE, remedy=_NEW)
        audits = [_audit_seed(seed, config, data) for seed in seeds]
    return FinetuneAudit(
        exact=all(audit.exact for audit in audits),
        complete=all(audit.complete for audit in audits),
        seeds=tuple(audits),
    )


def _seed_of(folder: Path) -> int:
    """The seed of a folder.

    Raises:
        RunError: If it is not the folder of a seed.
    """
    number = folder.name.removeprefix("seed-")
    if not number.isdecimal():
        raise RunError(
            str(folder),
            got=f"the name {folder.name}",
            rule="must be the folder of a fine-tuning run, or its folder seed-S of the seed S",
            remedy="Check the path.",
        )
    return int(number)


def _audit_seed(folder: Path, config: FinetuneConfig, data: TaskData) -> SeedAudit:
    try:
        return _Rebuilt(folder, config, data).audit()
    except ReptrainError as error:
        return SeedAudit(
            seed=_seed_of(folder), exact=False, complete=False, steps=0, exposures={}, cannot_say=str(error)
        )


class _Rebuilt:
    """Rebuild the steps of one seed.

    Args:
        folder: Folder of the seed.
        config: Settings of the fine-tuning.
        data: Checksums of the task's files.

    Raises:
        ReptrainError: If the task's files or the tokenizer cannot be read, or the files differ.
    """

    def __init__(self, folder: Path, config: FinetuneConfig, data: TaskData) -> None:
        self._folder, self._config, self._seed = folder, config, _seed_of(folder)
        trained = open_saved_model(folder)
        self._tokenizer: Tokenizer = trained.tokenizer()
        self._encoder = Encoder.of(trained, self._tokenizer, config.task.separator, config.limits)
        rows = read_rows(config.task, config.limits, self._encoder.fits)
        if rows.files != data.files:
            names = [name for name in data.files if rows.files.get(name) != data.files[name]]
            raise RunError(
                f"files of the task in {config.task.data}",
                got=f"other contents of {', '.join(names) or 'more files'}",
                rule="must be the files that the fine-tuning used, by the checksums in data.json",
                remedy="Restore them.",
            )
        texts = [row.input for row in rows.train], [row.target for row in rows.train]
        self._pairs: Sequence[Pair] = self._encoder.pairs(*texts)

    def audit(self) -> SeedAudit:
        """Compare the records with the steps."""
        examples, order = (
            len(self._pairs),
            example_order(len(self._pairs), epochs=self._config.epochs, seed=self._seed),
        )
        steps = StepPlan(self._config.train.batch_windows, self._config.epochs * examples)
        batches = ExampleBatches(
            self._pairs, order, steps, _HERE, steps.batch_windows, self._encoder.in_one_row
        )
        records = [r for r in task_metrics(self._folder).records() if isinstance(r, StepRecord)]
        if any(record.inputs is None for record in records):
            raise RunError(
                str(self._folder / "metrics.jsonl"),
                got="steps without an input digest",
                rule="must be of a version that records them",
                remedy=_NEW,
            )
        seen: Counter[int] = Counter()
        problems = list[str]()
        for record, batch in zip(records, batches.iterate(0), strict=False):
            problem = self._problem(record, batch)
            if problem is None:
                seen.update(
                    number
                    for part in batch.micro_batches
                    for number in part.start_B[part.length_B > 0].tolist()
                )
            else:
                problems.append(f"step {batch.step}: {problem}")
        if len(records) > steps.num_steps:
            problems.append(f"{len(records):,} steps are recorded, and the settings give {steps.num_steps:,}")
        times = Counter(seen[number] for number in range(examples))
        return SeedAudit(
            seed=self._seed,
            exact=not problems,
            complete=len(records) == steps.num_steps,
            steps=len(records),
            exposures=dict(sorted(times.items())),
            problems=tuple(problems[:_LISTED]),
        )

    def _problem(self, record: StepRecord, batch: Batch) -> str | None:
        """How a record differs from its step."""
        if (record.step, record.examples) != (batch.step, batch.windows):
            return f"step {record.step} with {record.examples} examples is recorded in its place"
        if record.target_tokens != batch.loss_tokens:
            return (
                f"{record.target_tokens:,} target tokens are recorded, and the task has {batch.loss_tokens:,}"
            )
        if record.inputs != self._digest(batch):
            return "the model saw other inputs than the task's"
        return None

    def _digest(self, batch: Batch) -> str:
        """The input digest of a step."""
        start, regularize = self._encoder.special.start, self._config.regularize
        objective = SourceTarget(0 if start is None else start, self._encoder.in_one_row)
        noise = InputNoise.of(regularize, self._tokenizer)
        masked = MaskedInputs.of(regularize, self._tokenizer)
        settings = Settings.at(batch.position, regularize, self._config.optimizer.weight_decay)
        digest = 0
        for part in batch.micro_batches:
            example = objective.example(part)
            context = DropoutContext(self._seed, batch.step, part.row_B)
            example = replace(example, inputs=noise(example.inputs, settings.input_noise, context))
            index_B = batch.first_index + part.row_B
            if settings.masked_inputs > 0:
                example = masked(example, settings.masked_inputs, context)
                index_B = torch.cat([index_B, index_B])
            digest += int(example_digests(example, index_B).sum())
        return f"{digest % 2**64:016x}"
