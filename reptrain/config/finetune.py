"""The configuration of fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from reptrain.config.base import BatchRows, Frozen, Positive, Seed
from reptrain.config.model import DropoutConfig, ModelConfig
from reptrain.config.optimizers import AdamWConfig, OptimizerConfig, ScheduleConfig
from reptrain.config.quantities import Budget
from reptrain.config.scheduled import Rate, Scheduled
from reptrain.config.schema import LOW_PRECISIONS
from reptrain.config.sections import RegularizeConfig, TrainConfig
from reptrain.config.task import TaskConfig, TaskLimits

_TENTH = Scheduled(value=0.1)


class FinetuneDropoutConfig(DropoutConfig):
    """Dropout rates by site: 0.1 at each site except DropPath."""

    embedding: Rate = _TENTH
    """Rate on the token embeddings."""
    attention: Rate = _TENTH
    """Rate on the attention weights, after the softmax."""
    residual: Rate = _TENTH
    """Rate on the output of each branch, before the residual add."""
    mlp: Rate = _TENTH
    """Rate on the hidden units of the MLP."""
    expert: Rate = _TENTH
    """Rate on the hidden units of experts."""


class FinetuneModelConfig(Frozen):
    """Settings of the model that replace the parent's."""

    dropout: FinetuneDropoutConfig = FinetuneDropoutConfig()
    """Dropout rates by site."""


class FinetuneTrainConfig(TrainConfig):
    """The steps, the precision and the device."""

    # Settings of runs that fine-tuning does not have. Old folders contain them; the schema hides them.
    total_tokens: SkipJsonSchema[Budget | None] = None
    batch_tokens: SkipJsonSchema[Positive | None] = None
    expert_parallel_size: SkipJsonSchema[Positive] = 1
    sequence_parallel_size: SkipJsonSchema[Positive] = 1
    on_nonfinite: SkipJsonSchema[Literal["stop", "skip"]] = "stop"
    batch_windows: BatchRows = 32
    """Examples per optimizer step, over all ranks and micro-batches."""
    micro_batch_windows: BatchRows | None = None
    """Examples per forward pass on one rank; null: the rank's whole share. Does not change the results."""


class FinetuneScheduleConfig(ScheduleConfig):
    """Learning rate as a function of the examples seen."""

    name: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd", "cyclic"] = "linear"
    """Shape after the warm-up."""
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.06
    """Share of the training in the warm-up, linear from 0."""
    final_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Final learning rate over the peak (cosine, linear, wsd), or the lowest one of each cycle (cyclic)."""


class FinetuneEvaluateConfig(Frozen):
    """Evaluation during training."""

    every_fraction: Annotated[float, Field(ge=1e-6, le=1)] = 0.1
    """Share of the training between evaluations on the selection split."""
    batch_examples: BatchRows = 32
    """Examples per forward pass in evaluation; does not change the results."""


class FinetuneConfig(Frozen):
    """Fine-tuning on a task. One example is one window. Schedules are in shares, epochs or steps."""

    task: TaskConfig
    """The task's file."""
    seed: Seed = 0
    """First seed: of the order of examples, the dropout masks and fresh weights."""
    weights: Literal["trained", "fresh"] = "trained"
    """trained: start from the parent's weights. fresh: start from random weights, the baseline without
    pre-training."""
    epochs: BatchRows = 3
    """Passes over the training examples."""
    limits: TaskLimits = TaskLimits()
    """Limits on the task's examples."""
    model: FinetuneModelConfig = FinetuneModelConfig()
    """Dropout."""
    train: FinetuneTrainConfig = FinetuneTrainConfig()
    """The steps, the precision and the device."""
    optimizer: OptimizerConfig = AdamWConfig()
    """The optimizer."""
    schedule: FinetuneScheduleConfig = FinetuneScheduleConfig()
    """The learning rate schedule."""
    regularize: RegularizeConfig = RegularizeConfig()
    """Label smoothing, z-loss and input noise."""
    evaluate: FinetuneEvaluateConfig = FinetuneEvaluateConfig()
    """When to evaluate on the selection split."""

    def on_device(self, device_type: str) -> Self:
        """These settings with `train.precision: auto` replaced by the precision of a device."""
        train = self.train.with_precision(device_type, self.optimizer)
        return self.model_copy(update={"train": train})

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        train, optimizer = self.train, self.optimizer
        if train.total_tokens is not None:
            raise ValueError("train.total_tokens is for runs; set epochs instead")
        if train.batch_tokens is not None:
            raise ValueError("train.batch_tokens is for runs; set train.batch_windows, in examples, instead")
        if train.on_nonfinite != "stop":
            raise ValueError("train.on_nonfinite must be stop in fine-tuning")
        if train.expert_parallel_size > 1:
            raise ValueError(
                f"fine-tuning needs train.expert_parallel_size 1; {train.expert_parallel_size} was given"
            )
        if train.sequence_parallel_size > 1:
            raise ValueError(
                f"fine-tuning needs train.sequence_parallel_size 1; {train.sequence_parallel_size} was given"
            )
        if train.precision in LOW_PRECISIONS and train.zero_stage == 0:
            raise ValueError(f"train.precision {train.precision} needs train.zero_stage 1, 2 or 3")
        if optimizer.needs_whole_matrices and train.zero_stage > 0:
            raise ValueError(f"optimizer.name {optimizer.name} needs train.zero_stage 0")
        return self

    def micro_batch_windows(self, model: ModelConfig, world_size: int) -> int:
        """Examples per forward pass on one rank: the configured number, or its whole share of a step.

        Always a multiple of the routing group.
        """
        group = model.moe.group_windows if model.moe else 1
        share = -(-self.train.batch_windows // (world_size * group)) * group
        micro = -(-(self.train.micro_batch_windows or share) // group) * group
        return min(micro, share)
