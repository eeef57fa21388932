"""The configuration of distillation."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from reptrain.config.base import Frozen
from reptrain.config.scheduled import Rate, Scheduled

_Path = Annotated[str, Field(min_length=1)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class DistillConfig(Frozen):
    """Distillation from a frozen model: the loss is (1 - weight) times the cross-entropy, plus weight times
    the Kullback-Leibler divergence from the teacher's distribution.

    The teacher has the inputs of the model, without dropout. Reported losses are the cross-entropy alone.
    """

    teacher: Annotated[list[_Path], BeforeValidator(_as_list)] = Field(default_factory=list, max_length=64)
    """A run folder, one of its checkpoints, an imported model, or a Hugging Face folder; or a list of them,
    whose probabilities are averaged. Empty: this run's own checkpoint at the end of the previous cycle of a
    cyclic learning rate; the first cycle has no teacher."""
    teacher_weights: list[Annotated[float, Field(ge=1e-6, le=1e6)]] = Field(default_factory=list)
    """Weight of each teacher in the average, relative to the others; empty: equal weights."""
    weight: Rate = Scheduled(value=0.5)
    """Share of the divergence in the loss; may be scheduled."""

    @model_validator(mode="after")
    def _one_weight_for_each_teacher(self) -> Self:
        if self.teacher_weights and len(self.teacher_weights) != len(self.teacher):
            raise ValueError(
                f"distill.teacher_weights must have one weight for each of {len(self.teacher)} teachers;"
                f" {len(self.teacher_weights)} were given"
            )
        return self
