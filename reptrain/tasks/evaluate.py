"""Score trained models on a task without fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from reptrain.config.task import TaskConfig, TaskLimits
from reptrain.distributed.world import World, choose_device
from reptrain.generation.decoding import without_capacity
from reptrain.hub.saved_model import open_saved_model
from reptrain.tasks.files import read_report
from reptrain.tasks.pairs import Encoder
from reptrain.tasks.scoring import Scorer, TaskScore

_BATCH_EXAMPLES = 32


class ScoredModel(NamedTuple):
    """The score of a model."""

    run: str
    step: int | None
    """Step of the run; None if the model has none."""
    score: TaskScore
    texts: list[str]
    """The generated text or chosen label of each row."""


def score_on_task(
    run: Path,
    task: TaskConfig,
    limits: TaskLimits,
    *,
    step: int | None = None,
    tokenizer: Path | None = None,
    device: str = "auto",
) -> ScoredModel:
    """Score a model on the reporting split of a task, without training.

    Args:
        run: A run folder, one of its checkpoints, a fine-tuned or imported model, or a Hugging Face folder.
        task: The task.
        limits: Longest inputs and targets, and the number of rows.
        step: Checkpoint of the run; None takes the newest undamaged one.
        tokenizer: Tokenizer file, if the model's own is missing.
        device: As train.device.

    Raises:
        ReptrainError: If the model or the task cannot be used.
    """
    trained = open_saved_model(run, step)
    encoder = Encoder.of(trained, trained.tokenizer(tokenizer), task.separator, limits)
    rows = read_report(task, limits, encoder.fits)
    chosen = choose_device(device)
    model = trained.load(without_capacity(trained.config)).to(chosen)
    score, texts = Scorer(task, encoder, World(0, 1, 0, chosen), _BATCH_EXAMPLES).score(model, rows)
    return ScoredModel(str(run), trained.step, score, texts)
