"""FLOPs of a training step: the model, the masked copies of its inputs, and the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reptrain.config import RunConfig
from reptrain.config.load import read_yaml, validate
from reptrain.config.model import ModelConfig
from reptrain.sizes.flops import train_flops_per_window


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of a training step for one window, by the convention of `train_flops_per_window`."""

    model: int
    """Forward and backward pass of the model."""
    masked_inputs: int
    """The same for the masked copy of the window (`regularize.masked_inputs`); 0 if the run has none."""
    teacher: int | None
    """Forward passes of the teachers, masked copies included; 0 without distillation, None if the settings
    of a teacher cannot be read."""

    @property
    def total(self) -> int:
        """The sum of the known parts."""
        return self.model + self.masked_inputs + (self.teacher or 0)


def has_masked_inputs(config: RunConfig) -> bool:
    """Whether steps of a run have masked copies of their rows."""
    return config.regularize.masked_inputs.largest > 0


def teacher_models(config: RunConfig) -> list[ModelConfig | None]:
    """The models of a run's teachers; None for one whose settings cannot be read. Empty without distillation.

    The settings are those of a run folder. Other models are not read, as that needs torch.
    """
    if config.distill is None:
        return []
    if not config.distill.teacher:
        return [config.model]
    return [_model_of(Path(path)) for path in config.distill.teacher]


def _model_of(path: Path) -> ModelConfig | None:
    # A checkpoint is RUN/checkpoints/step-N.
    folder = next((one for one in (path, *path.parents[1:2]) if (one / "plan.json").exists()), None)
    return None if folder is None else validate(RunConfig, read_yaml(folder / "config.yaml")).model


def step_flops(config: RunConfig, vocab_size: int) -> StepFlops:
    """FLOPs of a step of a run that uses all of its losses.

    Args:
        config: The run.
        vocab_size: Vocabulary size of the tokenizer.

    Raises:
        ConfigError: If a configured embedding is smaller than the vocabulary, or the settings of a teacher
            are invalid.
    """
    of_model = train_flops_per_window(config.model, vocab_size, config.example_shape)
    copies = int(has_masked_inputs(config))
    teacher = teacher_flops(config, vocab_size)
    return StepFlops(of_model, copies * of_model, None if teacher is None else (1 + copies) * teacher)


def teacher_flops(config: RunConfig, vocab_size: int) -> int | None:
    """FLOPs of the forward passes of all teachers for one window; None if one is unknown."""
    total = 0
    for model in teacher_models(config):
        if model is None:
            return None
        # Training is three forward passes.
        total += train_flops_per_window(model, vocab_size, config.example_shape) // 3
    return total
