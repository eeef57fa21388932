"""The configuration of a fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from reptrain.config.base import BatchRows, Frozen, Positive, Seed
from reptrain.config.model import DropoutConfig, ModelConfig
from reptrain.config.optimizers import AdamWConfig, OptimizerConfig, ScheduleConfig
from reptrain.config.quantities import Budget
from reptrain.config.scheduled import Rate, Scheduled
from reptrain.config.schema import LOW_PRECISIONS, RegularizeConfig, TrainConfig
from reptrain.config.task import TaskConfig, TaskLimits

_TENTH = Scheduled(value=0.1)


class FinetuneDropoutConfig(DropoutConfig):
    """Dropout rates by site, 0.1 at each but DropPath."""

    embedding: Rate = _TENTH
    """Of the token embeddings."""
    attention: Rate = _TENTH
    """Of the attention weights, after the softmax."""
    residual: Rate = _TENTH
    """Of each branch before it is added to the residual stream."""
    mlp: Rate = _TENTH
    """Of the hidden units of the MLP."""
    expert: Rate = _TENTH
    """Of the hidden units of the experts of sparse layers."""


class FinetuneModelConfig(Frozen):
    """What of the model is set anew; all else is the parent's."""

    dropout: FinetuneDropoutConfig = FinetuneDropoutConfig()
    """Dropout rates by site."""


class FinetuneTrainConfig(TrainConfig):
    """In what steps, with what precision, and where."""

    # Settings of runs, null or fixed in a fine-tuning: old folders name them, the schema does not.
    total_tokens: SkipJsonSchema[Budget | None] = None
    expert_parallel_size: SkipJsonSchema[Positive] = 1
    on_nonfinite: SkipJsonSchema[Literal["stop", "skip"]] = "stop"
    batch_windows: BatchRows = 32
    """Examples of one optimizer step, over all ranks and micro-batches."""
    micro_batch_windows: BatchRows | None = None
    """Examples of one forward pass on one rank; null: the rank's whole share. Does not change results."""


class FinetuneScheduleConfig(ScheduleConfig):
    """The learning rate as a function of the examples seen."""

    name: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd"] = "linear"
    """Shape after the warm-up."""
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.06
    """Share of the training over which the rate rises linearly from 0."""
    final_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Rate at the end over peak rate (cosine, linear, wsd)."""


class FinetuneEvaluateConfig(Frozen):
    """Scoring on the way."""

    every_fraction: Annotated[float, Field(ge=1e-6, le=1)] = 0.1
    """Share of the training between two looks at the examples that choose the best checkpoint."""
    batch_examples: BatchRows = 32
    """Examples of one forward pass without gradients; changes nothing."""


class FinetuneConfig(Frozen):
    """A fine-tuning on a task. An example counts as a window, and schedules are told in shares, epochs or
    steps."""

    task: TaskConfig
    """The task's file."""
    seed: Seed = 0
    """Of the first fine-tuning: keys the order of the examples, the dropout masks, and fresh weights."""
    weights: Literal["trained", "fresh"] = "trained"
    """Begin with the parent's weights, or with weights drawn by the seed: the twin that shows what
    pre-training is worth."""
    epochs: BatchRows = 3
    """How often each example is seen."""
    limits: TaskLimits = TaskLimits()
    """How much of the task is used."""
    model: FinetuneModelConfig = FinetuneModelConfig()
    """Dropout."""
    train: FinetuneTrainConfig = FinetuneTrainConfig()
    """In what steps, with what precision, and where; `epochs` says how long."""
    optimizer: OptimizerConfig = AdamWConfig()
    """What changes the weights, as in a run."""
    schedule: FinetuneScheduleConfig = FinetuneScheduleConfig()
    """The learning rate."""
    regularize: RegularizeConfig = RegularizeConfig()
    """Label smoothing, z-loss, and noise in the inputs."""
    evaluate: FinetuneEvaluateConfig = FinetuneEvaluateConfig()
    """When to look at the examples that choose."""

    def on_device(self, device_type: str) -> Self:
        """These settings with `train.precision: auto` replaced by the precision of a device."""
        train = self.train.with_precision(device_type, self.optimizer)
        return self.model_copy(update={"train": train})

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        train, optimizer = self.train, self.optimizer
        if train.total_tokens is not None:
            raise ValueError("train.total_tokens is for runs; set epochs instead")
        if train.on_nonfinite != "stop":
            raise ValueError("train.on_nonfinite must be stop in a fine-tuning")
        if train.zero_stage == 3 or train.expert_parallel_size > 1:
            raise ValueError("a fine-tuning needs train.zero_stage 0 to 2 and train.expert_parallel_size 1")
        if train.precision in LOW_PRECISIONS and train.zero_stage == 0:
            raise ValueError(f"train.precision {train.precision} needs train.zero_stage 1 or 2")
        if optimizer.needs_whole_matrices and train.zero_stage > 0:
            raise ValueError(f"optimizer.name {optimizer.name} needs train.zero_stage 0")
        return self

    def micro_batch_windows(self, model: ModelConfig, world_size: int) -> int:
        """Examples of one forward pass on one rank: the configured number, or its whole share of a step;
        whole routing groups."""
        group = model.moe.group_windows if model.moe else 1
        share = -(-self.train.batch_windows // (world_size * group)) * group
        micro = -(-(self.train.micro_batch_windows or share) // group) * group
        return min(micro, share)
