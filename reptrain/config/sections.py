"""The sections of a run's configuration: data, training, regularizers, evaluation, checkpoints and seeds."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from reptrain.config.base import BatchRows, Frozen, Positive, Rows, Seed
from reptrain.config.model import Recompute
from reptrain.config.optimizers import OptimizerConfig
from reptrain.config.quantities import Budget, Count, TextAmount, named_amounts
from reptrain.config.scheduled import NONE, Coefficient, Moment, Rate

SourceName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=64)]
Order = Literal["reshuffle", "same", "mixed"]
Cut = Literal["fixed", "shifted", "repacked"]
ONE_EPOCH = Budget(epochs=Fraction(1))


class SourceConfig(Frozen):
    """One store of a mixture, with its own subset, order and budget."""

    store: str
    """Folder of the token store."""
    unique_tokens: Positive | None = None
    """U, the size of its subset in tokens; null: all training tokens of the store."""
    total_tokens: Budget = ONE_EPOCH
    """Budget of the source: tokens, repeats included (2**20), epochs over its subset (4epochs, 0.5epochs), or
    input or target tokens of the objective (2**20inputs, 2**20targets), or text (100Mwords, 5e8bytes)."""
    order: Order | None = None
    """Like data.order; null: data.order."""
    cut: Cut | None = None
    """Like data.cut; null: data.cut."""
    subset_seed: Seed | None = None
    """Like data.subset_seed; null: data.subset_seed."""


class DataConfig(Frozen):
    """The training data, its subset and its order."""

    store: str | None = None
    """Folder of the token store (see `reptrain tokenize`), relative to the working directory; the run records
    its absolute path. Set either this or `sources`."""
    sources: dict[SourceName, SourceConfig] = Field(default_factory=dict)
    """A mixture: several stores by name, interleaved so that each keeps its share throughout the run."""
    unique_tokens: Positive | None = None
    """U, the size of the subset in tokens; null: all training tokens of the store."""
    window_tokens: Rows | None = None
    """L, raw tokens per window, the unit of shuffling. Null: 256; with ul2 512; with span_corruption as many
    as fill objective.input_tokens; with denoising 511."""
    order: Order = "reshuffle"
    """reshuffle: a new permutation of the windows in each epoch. same: one permutation for all epochs. mixed:
    the windows of all epochs, shuffled as one list."""
    cut: Cut = "fixed"
    """fixed: the same window boundaries in every epoch. shifted: they start at a random offset in each
    epoch. repacked: the documents are reordered and packed again in each epoch; not with the
    order mixed."""
    subset_seed: Seed = 0
    """Seed of the order of documents. Subsets with the same seed are nested; `seed` does not change them."""
    document_mask: bool = False
    """Whether attention stays within a document. A decoder's positions then restart in each document."""

    @model_validator(mode="after")
    def _store_or_sources(self) -> Self:
        if self.store is None and not self.sources:
            raise ValueError("must name a store or a mixture of sources; set data.store=FOLDER")
        if self.store is not None and self.sources:
            raise ValueError("must name a store or a mixture of sources, not both; set data.store=null")
        if self.sources and self.unique_tokens is not None:
            raise ValueError("unique_tokens is for one store; set it for each of data.sources instead")
        return self


def _switch(on: str) -> Callable[[Any], Any]:
    """A validator that also accepts true and false for a setting of several words."""
    return lambda value: (on if value else "none") if isinstance(value, bool) else value


class TrainConfig(Frozen):
    """The budget, the steps, the precision and the parallelism."""

    total_tokens: Budget | None = None
    """Budget: tokens, repeats included (2**20, 1e9), epochs over the subset (64epochs), or input or target
    tokens of the objective (2**20inputs, 2**20targets), or words or bytes of text (100Mwords, 5e8bytes) at
    the store's mean per token. Null: one epoch. In a mixture, each source has its own."""
    batch_windows: BatchRows = 16
    """Windows per optimizer step, over all ranks and micro-batches."""
    batch_tokens: Positive | None = None
    """Raw tokens per optimizer step, instead of batch_windows, which the run records: a multiple of
    data.window_tokens."""
    micro_batch_windows: BatchRows | None = None
    """Windows per forward pass on one rank; null: the rank's whole share of the step. Does not change the
    results."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 with zero_stage 1 or more on a GPU with AdamW, else fp32. bf16 needs zero_stage 1 or more,
    and accumulates and reduces gradients in fp32. fp16 needs a GPU."""
    tf32: bool = True
    """Whether matrix products of fp32 tensors may use TF32 on a GPU: a 10-bit mantissa, several times as
    fast."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage. 1 shards the optimizer states, 2 also the gradients, 3 also the parameters."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """cpu: the optimizer's states and the fp32 weights are in the memory of the host, which computes the
    update. It needs zero_stage 1 or more."""
    offload_parameters: Literal["none", "cpu"] = "none"
    """cpu: each rank's partition of the weights is in the memory of the host, and is copied to the GPU when a
    layer needs it. It needs zero_stage 3. Does not change the results."""
    overlap_communication: bool = False
    """Whether gradients are reduced while the backward pass continues, at the cost of one more bucket. It
    needs zero_stage 2; zero_stage 3 always does so. Does not change the results."""
    bucket_elements: Positive | None = None
    """Number of gradients that are reduced together. Larger buckets need fewer messages; smaller ones need
    less memory and are sent earlier. Null: up to 5e8 on a GPU with zero_stage 1 or more, else 2^22."""
    expert_parallel_size: Positive = 1
    """Number of consecutive ranks that the experts are distributed over. It divides the number of experts and
    of ranks, and needs zero_stage 1 or 2. Does not change the results."""
    sequence_parallel_size: Positive = 1
    """Number of consecutive ranks that share the positions of each window, for long windows
    (DeepSpeed-Ulysses). It divides the number of attention heads and of ranks, and needs a dense model. Does
    not change the results."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    compile: Annotated[Literal["none", "block", "model"], BeforeValidator(_switch("model"))] = "none"
    """torch.compile of each layer (block) or of the whole model (model, or true)."""
    activation_checkpointing: Annotated[Recompute, BeforeValidator(_switch("full"))] = "none"
    """Activations of a layer to recompute in the backward pass. none; full (or true): all; selective: all but
    the outputs of matrix products and of attention (not with zero_stage 3)."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """If a loss or gradient is not finite: stop the run as diverged, or skip the step, and the audit reports
    not exact. fp16 first repeats the step with a smaller loss scale."""
    poll_stop_steps: Positive = 1
    """Steps between the messages in which the ranks agree on a request to stop: a signal, or the end of
    --max-minutes. Each takes an all-reduce of one number, and on a GPU a synchronization. Does not change the
    results."""
    rank_timeout_seconds: Annotated[float, Field(gt=0, le=1e7)] = 600.0
    """Seconds without a sign of life from a rank until the other ranks stop with an error that names it."""

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> Self:
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise ValueError(
                f"offload_optimizer {self.offload_optimizer} needs zero_stage 1, 2 or 3; stage 0 keeps all"
                " states on the device; set train.zero_stage=1"
            )
        return self

    @model_validator(mode="after")
    def _parameters_are_partitioned(self) -> Self:
        if self.offload_parameters != "none" and self.zero_stage != 3:
            raise ValueError(
                f"offload_parameters {self.offload_parameters} needs zero_stage 3, and {self.zero_stage} was"
                " given: below 3 each rank computes with all weights; set train.zero_stage=3, or"
                " train.offload_optimizer=cpu instead"
            )
        return self

    @model_validator(mode="after")
    def _gradients_are_reduced_early(self) -> Self:
        if self.overlap_communication and self.zero_stage < 2:
            raise ValueError(
                f"overlap_communication needs zero_stage 2 or 3, and {self.zero_stage} was given: below 2"
                " DeepSpeed reduces bf16 gradients after the backward pass; set train.zero_stage=2"
            )
        return self

    @model_validator(mode="after")
    def _selective_needs_whole_weights(self) -> Self:
        if self.activation_checkpointing == "selective" and self.zero_stage == 3:
            raise ValueError(
                "activation_checkpointing selective needs zero_stage 0, 1 or 2: stage 3 gathers weights"
                " within a layer, which torch counts as recomputed; set train.activation_checkpointing=full"
            )
        return self

    def with_precision(self, device_type: str, optimizer: OptimizerConfig) -> Self:
        """These settings with `auto` replaced by the precision of a device.

        Args:
            device_type: "cuda" or "cpu".
            optimizer: One that needs whole matrices needs ZeRO stage 0, which has no bf16.
        """
        if self.precision != "auto":
            return self
        if device_type != "cuda" or optimizer.needs_whole_matrices:
            return self.model_copy(update={"precision": "fp32"})
        return self.model_copy(update={"precision": "bf16", "zero_stage": max(1, self.zero_stage)})


class RegularizeConfig(Frozen):
    """Regularizers of the loss and of the inputs; each may be scheduled.

    Dropout is in model.dropout, weight decay in optimizer. Reported losses exclude these terms.
    """

    label_smoothing: Rate = NONE
    """Share of a target's probability that is spread uniformly over the vocabulary."""
    z_loss: Coefficient = NONE
    """Weight of the squared logsumexp of the logits (T5: 1e-4)."""
    input_noise: Rate = NONE
    """Share of input tokens to replace; special ids and sentinels are never replaced."""
    input_noise_by: Literal["unknown", "random"] = "unknown"
    """Replacement: the tokenizer's unknown id, or uniformly drawn tokens."""
    masked_inputs: Coefficient = NONE
    """Weight of a second loss, of the same targets predicted from inputs with masked tokens. It doubles the
    computation of a step."""
    masked_inputs_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Largest share of masked tokens; each window draws its own, uniformly from 0 to this."""


class AverageConfig(Frozen):
    """An average of the weights, scored in addition to the weights."""

    name: Literal["ema", "mean"] = "ema"
    """ema: exponential moving average; mean: mean over all steps since start."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the ema per step."""
    start: Moment = Moment(Fraction(0), "share")
    """Start of the average: `75%` averages the last quarter of the run."""


class EvaluateConfig(Frozen):
    """Evaluation on the held-out splits and on a fixed probe of training windows, without dropout."""

    every_fraction: Annotated[float, Field(ge=1e-6, le=1)] = 0.1
    """Share of the run between evaluations; start and end are always evaluated."""
    max_windows: BatchRows = 64
    """Windows to score per set: select, report, and the probe of training windows. A fixed seed draws them
    once, without replacement."""
    noise_samples: Annotated[Count, Field(gt=0, le=1000)] = 1
    """Number of times to score each window, with different noise each time."""
    patience: Positive | None = None
    """Early stopping: evaluations without a better loss on select until the run stops; null: never."""
    at_steps: list[Positive] = Field(default_factory=list)
    """Further numbers of completed steps at which to evaluate. A study sets them where runs branch."""


class CheckpointConfig(Frozen):
    """When to save checkpoints, and how many to keep."""

    every_fraction: Annotated[float, Field(ge=1e-6, le=1)] = 0.25
    """Share of the run between checkpoints; the last step is always saved."""
    keep_last: Positive = 2
    """Number of newest checkpoints to keep."""
    background: bool | Literal["auto"] = "auto"
    """Whether training continues while a checkpoint is written. It takes memory of the host for a copy of
    each rank's state: 12 bytes for each parameter, or 16 with an average of the weights, divided by the
    number of ranks. auto: where a rank's copy has at least 256 MiB, and the copies take at most half of the
    memory that is available on each host at the start."""
    mirror: str | None = None
    """URL of a folder, such as s3://bucket/runs, that gets a copy of the run folder after each checkpoint;
    null: none."""
    keep_every_fraction: Annotated[float, Field(ge=1e-6, le=1)] | None = None
    """Share of the run between checkpoints that are kept permanently; null: none."""
    at_steps: list[Positive] = Field(default_factory=list)
    """Further numbers of completed steps at which to save a checkpoint that is kept permanently. A study sets
    them where runs branch."""
    at_cycle_ends: bool = False
    """Whether to save a checkpoint at the end of each cycle of a cyclic learning rate, kept permanently: the
    members of an ensemble (`reptrain evaluate --snapshots`)."""
    at_text: Annotated[list[TextAmount], BeforeValidator(named_amounts)] = Field(default_factory=list)
    """Amounts of consumed text, such as 1Mwords or 5e6bytes, repeats included, at which to save a checkpoint
    that is kept permanently and becomes a revision of `reptrain export --revisions`. babylm: every million
    words up to 10 million, then every 10 million up to 100 million, then every 100 million up to a
    billion."""


class BranchConfig(Frozen):
    """The run that a run shares its first steps with."""

    run: str
    """Folder of that run. Refused if the two runs differ within the shared steps."""
    step: Positive
    """Number of shared steps. Without an intact checkpoint at this step, the run trains from its start."""


class SeedsConfig(Frozen):
    """Seeds of the parts of a run that draw at random; null: `seed`."""

    order: Seed | None = None
    """Seed of the order of the windows, and of shifted and repacked cuts. It also keys the objective's
    noise."""
    noise: Seed | None = None
    """Seed of the objective's noise."""
    weights: Seed | None = None
    """Seed of the initial weights."""
    dropout: Seed | None = None
    """Seed of the dropout masks and of input noise."""
