"""The teacher of a distilled run: a frozen model whose distribution the run imitates.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from reptrain.config import RunConfig
from reptrain.config.model import DecoderConfig
from reptrain.config.scheduled import RunPosition, Scheduled
from reptrain.errors import ConfigError
from reptrain.evaluation.ensemble import Ensemble
from reptrain.hub.saved_model import SavedModel, open_saved_model
from reptrain.model.head import Distribution
from reptrain.text import Tokenizer
from reptrain.training.init_from import refuse_another_vocabulary


class Teacher:
    """Computes the distribution that a step imitates, in evaluation mode and fp32.

    Args:
        weight: Share of the divergence in the loss.
        first_steps: Step from which each model is the teacher, ascending.
        open_model: Opens the model of a place in ``first_steps``.
        device: Device of the models; one is held at a time.
    """

    def __init__(
        self,
        weight: Scheduled,
        first_steps: Sequence[int],
        open_model: Callable[[int], nn.Module],
        device: torch.device,
    ) -> None:
        self._weight, self._first_steps = weight, first_steps
        self._open_model, self._device = open_model, device
        self._held: tuple[int, nn.Module] | None = None

    def share(self, position: RunPosition) -> float:
        """Share of the divergence in the loss of a step; 0 if the step has no teacher."""
        return self._weight.at(position) if self._place(position.step) >= 0 else 0.0

    @torch.no_grad()
    def distribution(self, inputs: Mapping[str, Tensor], position: RunPosition) -> Distribution | None:
        """The teacher's distribution of the targets; None if the step does not use it.

        Args:
            inputs: Keyword arguments of the model.
            position: The step.
        """
        share = self.share(position)
        if share == 0:
            return None
        place = self._place(position.step)
        if self._held is None or self._held[0] != place:
            # The earlier model is released first.
            self._held = None
            self._held = place, self._open_model(place).to(self._device)
        logits_BTV: Tensor = self._held[1](**inputs)
        return Distribution(logits_BTV, torch.tensor(share, dtype=torch.float64))

    def _place(self, step: int) -> int:
        """The place of a step's teacher; -1 before the first."""
        return sum(first <= step for first in self._first_steps) - 1


def build_teacher(
    config: RunConfig,
    saved: Sequence[SavedModel],
    checkpoints: Path,
    ends: Sequence[int],
    device: torch.device,
) -> Teacher | None:
    """The teacher of a run; None without distillation.

    Args:
        config: The run.
        saved: The models of `distill.teacher`.
        checkpoints: Folder of the run's checkpoints, which has those of the ends of cycles.
        ends: Steps at the ends of the cycles.
        device: Device of the run.
    """
    distill = config.distill
    if distill is None:
        return None
    if saved:
        weights = distill.teacher_weights or [1.0] * len(saved)
        shares = [weight / sum(weights) for weight in weights]

        def build() -> nn.Module:
            models = [one.load() for one in saved]
            return models[0] if len(models) == 1 else Ensemble(models, shares).eval()

        return Teacher(distill.weight, [0], lambda _: build(), device)
    # The last cycle teaches no other.
    firsts, run = ends[:-1], checkpoints.parent
    return Teacher(distill.weight, firsts, lambda place: open_saved_model(run, firsts[place]).load(), device)


def open_teachers(config: RunConfig, tokenizer: Tokenizer) -> list[SavedModel]:
    """Open the models of `distill.teacher`.

    Raises:
        ConfigError: If one is of another family, attends differently, has another vocabulary or too few
            positions, or if several have embeddings of different sizes.
        ReptrainError: If there is no such model.
    """
    if config.distill is None:
        return []
    saved = [open_saved_model(Path(path)) for path in config.distill.teacher]
    for one in saved:
        facts = {
            "model.family": (one.config.family, config.model.family),
            "the attention": (one.reading, config.objective.reading(config.model.family)),
            "as many embedding rows as the others:": (one.rows, saved[0].rows),
        }
        for name, (there, here) in facts.items():
            if there != here:
                raise ConfigError(
                    f"distill.teacher {one.path}",
                    got=f"{name} {there}",
                    rule=f"must have {name} {here}",
                    remedy="Choose another teacher, or change the run.",
                )
        if one.rows < tokenizer.vocab_size:
            raise ConfigError(
                f"distill.teacher {one.path}",
                got=f"an embedding of {one.rows} rows",
                rule=f"must have at least the {tokenizer.vocab_size} ids of the store's tokenizer",
                remedy="Choose a teacher that was trained with this tokenizer.",
            )
        _refuse_few_positions(one, config)
        refuse_another_vocabulary(one, tokenizer)
        one.check()
    return saved


def _refuse_few_positions(teacher: SavedModel, config: RunConfig) -> None:
    positions = config.example_shape.target_tokens
    most = teacher.config.max_positions if isinstance(teacher.config, DecoderConfig) else None
    if most is not None and positions > most:
        raise ConfigError(
            f"distill.teacher {teacher.path}",
            got=f"{most} learned positions",
            rule=f"must have at least the {positions} positions of the run",
            remedy="Choose a teacher of longer windows, or set data.window_tokens lower.",
        )


def teacher_fingerprint(saved: Sequence[SavedModel]) -> str | None:
    """Fingerprint of the weights of all teachers, in order; None without one."""
    if len(saved) <= 1:
        return saved[0].fingerprint() if saved else None
    text = " ".join(one.fingerprint() for one in saved)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
