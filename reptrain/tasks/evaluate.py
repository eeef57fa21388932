"""Trained models on a task, as they are."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from reptrain.config.task import TaskConfig, TaskLimits
from reptrain.distributed.world import World, choose_device
from reptrain.generation.decoding import without_capacity
from reptrain.hub.saved_model import open_trained
from reptrain.tasks.files import read_report
from reptrain.tasks.pairs import Encoder
from reptrain.tasks.scoring import Scorer, TaskScore

_BATCH_EXAMPLES = 32


class ScoredModel(NamedTuple):
    """A model and how it did."""

    run: str
    step: int | None
    """Of the run that made it; None where there was none."""
    score: TaskScore
    texts: list[str]
    """What it wrote or chose, row by row."""


def score_on_task(
    run: Path,
    task: TaskConfig,
    limits: TaskLimits,
    *,
    step: int | None = None,
    tokenizer: Path | None = None,
    device: str = "auto",
) -> ScoredModel:
    """Score a model on the rows of a task that are told of, without training.

    Args:
        run: A run folder, one of its checkpoints, a fine-tuned or imported model, or a Hugging Face folder.
        task: The task.
        limits: How long inputs and targets may be, and how many rows.
        step: Of a run, whose checkpoint; None takes the newest that is whole.
        tokenizer: Its file, where the model's own is not found.
        device: As train.device.

    Raises:
        ReptrainError: For a model or a task that cannot be used.
    """
    trained = open_trained(run, step)
    encoder = Encoder.of(trained, trained.tokenizer(tokenizer), task.separator, limits)
    rows = read_report(task, limits, encoder.fits)
    chosen = choose_device(device)
    model = trained.load(without_capacity(trained.config)).to(chosen)
    score, texts = Scorer(task, encoder, World(0, 1, 0, chosen), _BATCH_EXAMPLES).score(model, rows)
    return ScoredModel(str(run), trained.step, score, texts)
