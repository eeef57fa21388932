"""The records of a fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from reptrain.errors import RunError
from reptrain.files import read_small, write_atomically
from reptrain.runs.ledger import Hex16
from reptrain.runs.records import FrozenRecord, JsonLines
from reptrain.tasks.intervals import Interval, mean_interval, paired_interval
from reptrain.tasks.scoring import TaskScore

RESULTS_FILE = "results.json"
CHOICES = ("best", "last")


class StepRecord(FrozenRecord):
    """One optimizer step."""

    kind: Literal["train"] = "train"
    step: int
    """The step, from 0."""
    epoch: float
    """Epochs seen with this step."""
    examples: int
    """Examples of the step."""
    target_tokens: int
    """Target tokens of the step."""
    loss_nats: float
    """Nats per target token, with dropout."""
    lr: float
    """Learning rate."""
    grad_norm: float | None
    """L2 norm of the whole gradient before clipping."""
    step_ms: float
    """Wall-clock time, from the request for the batch to the updated weights."""
    tokens_per_s: float | None = None
    """Tokens of inputs and targets over that time, all devices together (see `reptrain.runs.pace`); None in
    older records."""
    inputs: Hex16 | None = None
    """Input digest (docs/format.md), in hexadecimal; None in older records."""


class SelectRecord(FrozenRecord):
    """Loss on the selection split, which chooses the best checkpoint; without dropout."""

    kind: Literal["select"] = "select"
    step: int
    """Steps before it."""
    epoch: float
    """Epochs seen before it."""
    nats_per_token: float
    """Mean over target tokens."""
    nats_per_answer: float
    """Mean over answers of the sum over their tokens."""


TaskRecord = Annotated[StepRecord | SelectRecord, Field(discriminator="kind")]


def seed_folders(out: Path) -> list[Path]:
    """The folders of the seeds of a fine-tuning run, in ascending order of the seed."""
    named = ((path.name.removeprefix("seed-"), path) for path in out.glob("seed-*"))
    numbered = ((int(number), path) for number, path in named if number.isdecimal())
    return [path for _, path in sorted(numbered)]


def task_metrics(folder: Path) -> JsonLines[Any]:
    """`metrics.jsonl` of one seed's folder."""
    return JsonLines(folder / "metrics.jsonl", TypeAdapter(TaskRecord))


def best_step(metrics: JsonLines[Any]) -> int | None:
    """The first step with the lowest loss on the selection split so far; None without an evaluation."""
    looks = [record for record in metrics.records() if isinstance(record, SelectRecord)]
    return min(looks, key=lambda look: look.nats_per_token).step if looks else None


class Chosen(FrozenRecord):
    """A checkpoint and its score on the reporting split."""

    step: int
    """Its step."""
    select_nats_per_token: float
    """On the selection split."""
    report: TaskScore
    """On the reporting split."""


class SeedResult(FrozenRecord):
    """One fine-tuning."""

    seed: int
    """Its seed."""
    steps: int
    """Optimizer steps."""
    best: Chosen
    """The checkpoint with the lowest loss on the selection split."""
    last: Chosen
    """The final checkpoint."""


class Results(FrozenRecord):
    """`results.json`: the results of every seed, and their means."""

    task: str
    """Its name."""
    kind: str
    """Its kind."""
    parent: str
    """The model that was fine-tuned, and its step."""
    weights: Literal["trained", "fresh"]
    """Initial weights."""
    examples: dict[str, int]
    """Rows of the training, selection and reporting splits."""
    cut: dict[str, int]
    """Training rows whose input or target was longer than the limit."""
    left_out: int
    """Rows of all files left out because their input is longer than the limit."""
    seeds: list[SeedResult]
    """Every seed."""
    mean: dict[str, dict[str, Interval]]
    """Of the best and the last checkpoint: each figure's mean over the seeds, with its 95 % interval."""

    def figures(self, which: str) -> dict[str, dict[int, float]]:
        """Each figure of the best or the last checkpoint, by seed."""
        scores = {seed.seed: getattr(seed, which).report.figures for seed in self.seeds}
        return {name: {seed: score[name] for seed, score in scores.items()} for name in self.mean[which]}

    def write(self, folder: Path) -> None:
        """Write it to a folder."""
        write_atomically(folder / RESULTS_FILE, [self.model_dump_json(indent=1), "\n"])

    def text(self) -> str:
        """The results as text."""
        lines = [
            f"{self.task}: {self.parent}, {self.weights} weights, {len(self.seeds)} seeds;"
            f" trained on {self.examples['train']:,} examples, chosen by {self.examples['select']:,} others,"
            f" reported on {self.examples['report']:,}"
        ]
        for what, count in self.cut.items():
            if count:
                lines.append(f"{count:,} {what} to train on were cut at their end")
        if self.left_out:
            lines.append(f"{self.left_out:,} rows left out: their inputs are longer than the limit")
        for which in CHOICES:
            steps = ", ".join(str(getattr(seed, which).step) for seed in self.seeds)
            lines.append(f"{which} checkpoint (step {steps})")
            lines += [f"  {name}: {interval}" for name, interval in self.mean[which].items()]
        return "\n".join(lines)


def over_seeds(seeds: list[SeedResult]) -> dict[str, dict[str, Interval]]:
    """The means over seeds with their intervals."""
    found: dict[str, dict[str, Interval]] = {}
    for which in CHOICES:
        scores = [getattr(seed, which).report.figures for seed in seeds]
        found[which] = {name: mean_interval([score[name] for score in scores]) for name in scores[0]}
    return found


def read_results(folder: Path) -> Results:
    """The results in a fine-tuning's folder.

    Raises:
        RunError: If there are none, or they are damaged.
    """
    path = folder / RESULTS_FILE
    try:
        return Results.model_validate_json(read_small(path))
    except (OSError, ValidationError) as error:
        raise RunError(
            str(path),
            got=getattr(error, "strerror", None) or "other content",
            rule="must be the results of a fine-tuning",
            remedy="Name the folder of one that is done.",
        ) from error


def against(results: Results, others: Results) -> dict[str, dict[str, Interval]]:
    """How much better one fine-tuning is than another: mean differences with 95 % intervals.

    Seeds that both have are paired: they share the order of the examples and the dropout masks.

    Raises:
        RunError: If they are of other tasks, or were reported on other examples.
    """
    mine, theirs = (
        (found.task, found.kind, found.examples["report"], sorted(found.mean["best"]))
        for found in (results, others)
    )
    if mine != theirs:
        raise RunError(
            "against",
            got=f"{theirs[0]} on {theirs[2]} examples",
            rule=f"must be of the same task and examples, {mine[0]} on {mine[2]}",
            remedy="Name another folder.",
        )
    found: dict[str, dict[str, Interval]] = {}
    for which in CHOICES:
        here, there = results.figures(which), others.figures(which)
        found[which] = {name: paired_interval(here[name], there[name]) for name in here}
    return found
