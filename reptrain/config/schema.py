"""The configuration of a run: frozen, typed, without unknown keys. Importing it touches no device."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from reptrain.config.base import BatchRows, FileName, Frozen, Positive, Rows, Seed
from reptrain.config.distill import DistillConfig
from reptrain.config.model import DecoderConfig, ModelConfig, Recompute
from reptrain.config.objectives import CausalConfig, ExampleShape, ObjectiveConfig
from reptrain.config.optimizers import AdamWConfig, OptimizerConfig, ScheduleConfig
from reptrain.config.quantities import Budget, Count, TextAmount, named_amounts
from reptrain.config.scheduled import NONE, Coefficient, Moment, Rate
from reptrain.files import absolute

SourceName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=64)]
Order = Literal["reshuffle", "same", "mixed"]
Cut = Literal["fixed", "shifted", "repacked"]
ONE_EPOCH = Budget(epochs=Fraction(1))
LOW_PRECISIONS = ("bf16", "fp16")


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
    expert_parallel_size: Positive = 1
    """Number of consecutive ranks that the experts are distributed over. It divides the number of experts and
    of ranks, and needs zero_stage 1 or 2. Does not change the results."""
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
    rank_timeout_seconds: Annotated[float, Field(gt=0, le=1e7)] = 600.0
    """Seconds without a sign of life from a rank until the other ranks stop with an error that names it."""

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


class RunConfig(Frozen):
    """One training run. `reptrain config show CONFIG` prints it with all defaults."""

    name: FileName | None = None
    """Name of the run folder; null: the file's name."""
    seed: Seed = 0
    """Seed of the epoch order, the noise, the initial weights and every dropout mask."""
    seeds: SeedsConfig = SeedsConfig()
    """Other seeds for some of these."""
    init_from: str | None = None
    """Initial weights: a run folder, one of its checkpoints, an imported model, or a Hugging Face folder. An
    encoder-decoder may start from a decoder of the same widths and layers. Null: random weights drawn with
    `seed`."""
    data: DataConfig
    """The training data, its subset and its order."""
    objective: ObjectiveConfig = CausalConfig()
    """The training objective."""
    model: ModelConfig = DecoderConfig()
    """The transformer."""
    train: TrainConfig = TrainConfig()
    """The budget, the steps, the precision and the parallelism."""
    optimizer: OptimizerConfig = AdamWConfig()
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate schedule."""
    regularize: RegularizeConfig = RegularizeConfig()
    """Label smoothing, z-loss and input noise."""
    average: AverageConfig | None = None
    """An average of the weights; null: none."""
    distill: DistillConfig | None = None
    """Distillation from another model, or from an earlier state of this one; null: none."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """When and on how many windows to evaluate."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save checkpoints, and how many to keep."""
    branch: BranchConfig | None = None
    """Another run whose checkpoint this run starts from, with its records; null: none. Does not change the
    results: the first steps of both runs are the same."""

    def with_absolute_stores(self) -> Self:
        """The run with absolute paths of its stores and its teacher, valid in any working directory."""
        data = self.data
        given: dict[str, Any] = {"store": data.store and absolute(data.store)}
        given["sources"] = {
            name: source.model_copy(update={"store": absolute(source.store)})
            for name, source in data.sources.items()
        }
        branch = self.branch and self.branch.model_copy(update={"run": str(Path(self.branch.run).absolute())})
        changed: dict[str, Any] = {"data": data.model_copy(update=given), "branch": branch}
        if self.distill is not None:
            teacher = [str(Path(path).absolute()) for path in self.distill.teacher]
            changed["distill"] = self.distill.model_copy(update={"teacher": teacher})
        return self.model_copy(update=changed)

    def store_setting(self, name: str) -> str:
        """The dotted key that names the store of a source."""
        return "data.store" if self.data.store is not None else f"data.sources.{name}.store"

    def seed_of(self, part: Literal["order", "noise", "weights", "dropout"]) -> int:
        """The seed of a part of the run: its own, or the run's."""
        own: Seed | None = getattr(self.seeds, part)
        return self.seed if own is None else own

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """The sources with all defaults, sorted by name, so that the order in the file does not matter. A
        single store is a mixture of one. Budgets are in raw tokens or epochs."""
        data = self.data
        if data.store is not None:
            budget = self.train.total_tokens or ONE_EPOCH
            only = SourceConfig(store=data.store, unique_tokens=data.unique_tokens, total_tokens=budget)
            given = {"data": only}
        else:
            given = data.sources
        defaults = {"order": data.order, "cut": data.cut, "subset_seed": data.subset_seed}
        return {
            name: source.model_copy(
                update={key: value for key, value in defaults.items() if getattr(source, key) is None}
                | {"total_tokens": self._in_raw_terms(source.total_tokens)}
            )
            for name, source in sorted(given.items())
        }

    def _in_raw_terms(self, budget: Budget) -> Budget:
        tokens = self.window_tokens
        inputs, targets = (count / tokens for count in self.objective.counts(tokens))
        return budget.in_raw_terms(inputs=inputs, targets=targets)

    @property
    def distills_itself(self) -> bool:
        """Whether each cycle is distilled from the run's own previous cycle."""
        return self.distill is not None and not self.distill.teacher

    @property
    def keeps_cycle_ends(self) -> bool:
        """Whether the checkpoint at the end of each cycle of the learning rate is kept."""
        return self.checkpoint.at_cycle_ends or self.distills_itself

    @property
    def window_tokens(self) -> int:
        """L, raw tokens per window."""
        return self.data.window_tokens or self.objective.default_window_tokens

    @property
    def example_shape(self) -> ExampleShape:
        """Positions of encoder and decoder for a full window."""
        return self.objective.shape(self.window_tokens, self.model.family)

    def micro_batch_windows(self, world_size: int) -> int:
        """Rows per forward pass: the configured number, or a rank's whole share of a batch.

        Always a multiple of the routing group.
        """
        group = self.model.moe.group_windows if self.model.moe else 1
        share = -(-self.train.batch_windows // (world_size * group)) * group
        return min(self.train.micro_batch_windows or share, share)

    def on_device(self, device_type: str) -> Self:
        """The run with `train.precision: auto` replaced by the precision of a device, "cuda" or "cpu"."""
        train = self.train.with_precision(device_type, self.optimizer)
        return self.model_copy(update={"train": train})

    @model_validator(mode="after")
    def _cycles_need_a_cyclic_rate(self) -> Self:
        if self.keeps_cycle_ends and self.schedule.name != "cyclic":
            what = (
                "checkpoint.at_cycle_ends" if self.checkpoint.at_cycle_ends else "distill without a teacher"
            )
            raise ValueError(f"{what} needs schedule.name cyclic; {self.schedule.name} was given")
        if self.distills_itself and self.schedule.cycles == 1:
            raise ValueError(
                "distill without a teacher needs schedule.cycles of at least 2, for the first cycle has no"
                " teacher; 1 was given"
            )
        return self

    @model_validator(mode="after")
    def _low_precision_needs_zero(self) -> Self:
        precision = self.train.precision
        if precision in LOW_PRECISIONS and self.train.zero_stage == 0:
            # In fp16, stage 0 also takes an extra step with weight decay before the first one.
            raise ValueError(
                f"train.precision {precision} needs train.zero_stage 1, 2 or 3: DeepSpeed's stage 0 keeps no"
                " fp32 gradients; set train.zero_stage=1"
            )
        return self

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> Self:
        if self.train.offload_optimizer != "none" and self.train.zero_stage == 0:
            raise ValueError(
                f"train.offload_optimizer {self.train.offload_optimizer} needs train.zero_stage 1, 2 or 3;"
                " set train.zero_stage=1"
            )
        return self

    @model_validator(mode="after")
    def _experts_can_be_spread(self) -> Self:
        size, moe, stage = self.train.expert_parallel_size, self.model.moe, self.train.zero_stage
        if size == 1:
            return self
        if moe is None:
            raise ValueError(
                f"train.expert_parallel_size {size} needs experts, and the model is dense;"
                " set train.expert_parallel_size=1, or model.moe"
            )
        if moe.num_experts % size:
            raise ValueError(
                f"train.expert_parallel_size must divide model.moe.num_experts {moe.num_experts};"
                f" {size} does not"
            )
        if stage not in (1, 2):
            why = "clips by a mean of the ranks' own norms" if stage == 0 else "takes no experts over ranks"
            raise ValueError(
                f"train.expert_parallel_size {size} needs train.zero_stage 1 or 2, for DeepSpeed's stage"
                f" {stage} {why}; set train.zero_stage={1 if stage == 0 else 2}"
            )
        return self

    @model_validator(mode="after")
    def _selective_needs_whole_weights(self) -> Self:
        if self.train.activation_checkpointing == "selective" and self.train.zero_stage == 3:
            raise ValueError(
                "train.activation_checkpointing selective needs train.zero_stage 0, 1 or 2: stage 3 gathers"
                " weights within a layer, which torch counts as recomputed; set it to full"
            )
        return self

    @model_validator(mode="after")
    def _optimizer_is_whole(self) -> Self:
        stage = self.train.zero_stage
        if self.optimizer.needs_whole_matrices and stage > 0:
            raise ValueError(
                f"optimizer.name {self.optimizer.name} needs train.zero_stage 0, and {stage} was given: it"
                " works on whole matrices, and ZeRO partitions them as flat vectors; use adamw, or set"
                " train.zero_stage=0"
            )
        return self

    @model_validator(mode="after")
    def _mup_is_for_adam(self) -> Self:
        scaled = isinstance(self.model, DecoderConfig) and self.model.mup_base_width is not None
        if scaled and not self.optimizer.supports_mup:
            raise ValueError(
                f"model.mup_base_width needs optimizer.name adamw, whose rule it follows;"
                f" {self.optimizer.name} was given"
            )
        return self

    @model_validator(mode="after")
    def _micro_batch_holds_whole_groups(self) -> Self:
        micro, moe = self.train.micro_batch_windows, self.model.moe
        if moe is not None and micro is not None and micro % moe.group_windows:
            raise ValueError(
                f"train.micro_batch_windows must be a multiple of model.moe.group_windows"
                f" {moe.group_windows}; {micro} is not"
            )
        return self

    @model_validator(mode="after")
    def _window_fits_positions(self) -> Self:
        model, positions = self.model, self.example_shape.target_tokens
        longest = model.max_positions if isinstance(model, DecoderConfig) else None
        if longest is not None and positions > longest:
            raise ValueError(
                f"data.window_tokens {self.window_tokens} must make at most model.max_positions {longest}"
                f" positions; it makes {positions}"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        objective, family = self.objective, self.model.family
        if family not in objective.families:
            raise ValueError(
                f"objective.name {objective.name} needs model.family {' or '.join(objective.families)};"
                f" {family} was given"
            )
        if self.data.document_mask and not objective.supports_document_mask:
            raise ValueError(
                f"objective.name {objective.name} needs data.document_mask false: it adds or moves"
                " tokens across documents"
            )
        return self

    @model_validator(mode="after")
    def _frozen_noise_needs_fixed_windows(self) -> Self:
        other = sorted({str(source.cut) for source in self.sources.values()} - {"fixed"})
        if self.objective.has_frozen_noise and other:
            raise ValueError(
                f"objective.noise frozen needs data.cut fixed: with {other[0]} cuts no window repeats"
            )
        return self

    @model_validator(mode="after")
    def _repacked_epochs_are_not_mixed(self) -> Self:
        if any((source.cut, source.order) == ("repacked", "mixed") for source in self.sources.values()):
            raise ValueError(
                "data.cut repacked needs data.order reshuffle or same: the order mixed takes windows from"
                " all epochs at once"
            )
        return self

    @model_validator(mode="after")
    def _window_fits_inputs(self) -> Self:
        largest = self.objective.max_input_tokens
        if largest is None:
            return self
        inputs = self.objective.shape(self.window_tokens, "t5").input_tokens
        if inputs > largest:
            raise ValueError(
                f"data.window_tokens {self.window_tokens} corrupts to {inputs} inputs, more than"
                f" objective.input_tokens {largest}; leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _mixture_has_its_own_budgets(self) -> Self:
        if self.data.sources and self.train.total_tokens is not None:
            raise ValueError(
                "train.total_tokens is for one store; set total_tokens for each of data.sources instead"
            )
        # Refuses a budget that the objective cannot spend.
        _ = self.sources
        return self
