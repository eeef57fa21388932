"""The configuration of a run: frozen, typed, unknown keys refused. Importing it touches no device."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from reptrain.config.base import BatchRows, FileName, Frozen, Positive, Rows, Seed
from reptrain.config.model import DecoderConfig, ModelConfig, Recompute
from reptrain.config.objectives import CausalConfig, ExampleShape, ObjectiveConfig
from reptrain.config.optimizers import AdamWConfig, OptimizerConfig, ScheduleConfig
from reptrain.config.quantities import Budget, Count
from reptrain.config.scheduled import NONE, Coefficient, Moment, Rate

SourceName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=64)]
Order = Literal["reshuffle", "same", "mixed"]
Cut = Literal["fixed", "shifted"]
ONE_EPOCH = Budget(epochs=Fraction(1))
LOW_PRECISIONS = ("bf16", "fp16")


class SourceConfig(Frozen):
    """One store of a mixture, with a subset, an order and a budget of its own."""

    store: str
    """Folder of the token store."""
    unique_tokens: Positive | None = None
    """U, the size of its subset in tokens; null takes every training token of the store."""
    total_tokens: Budget = ONE_EPOCH
    """Tokens to consume of it, repeats counted (2**20), epochs over its subset (4epochs, 0.5epochs), or what
    the objective makes of them (2**20inputs, 2**20targets)."""
    order: Order | None = None
    """As data.order; null takes that."""
    cut: Cut | None = None
    """As data.cut; null takes that."""
    subset_seed: Seed | None = None
    """As data.subset_seed; null takes that."""


class DataConfig(Frozen):
    """Which tokens, how often, in which order."""

    store: str | None = None
    """Folder of the token store (`reptrain tokenize` makes one), from the working directory; the run records
    it as an absolute path. Either this or `sources`."""
    sources: dict[SourceName, SourceConfig] = Field(default_factory=dict)
    """A mixture: several stores by name, interleaved so that each keeps its share in every stretch."""
    unique_tokens: Positive | None = None
    """U, the size of the subset in tokens; null takes every training token of the store."""
    window_tokens: Rows | None = None
    """L, the raw tokens of a window: the unit of shuffling. Null: 256; 512 under ul2; under span corruption
    as many as fill objective.input_tokens."""
    order: Order = "reshuffle"
    """A new permutation of the windows each epoch, one for all, or the epochs shuffled as one list."""
    cut: Cut = "fixed"
    """Window boundaries: the same in every epoch, or from a keyed offset in each."""
    subset_seed: Seed = 0
    """Keys the order of documents. Subsets of one seed are nested; `seed` does not change them."""
    document_mask: bool = False
    """Whether attention stays within a document where a window holds several. A decoder's positions then
    start anew in each document."""

    @model_validator(mode="after")
    def _store_or_sources(self) -> Self:
        if self.store is None and not self.sources:
            raise ValueError("data must name a store or a mixture of sources; set data.store=FOLDER")
        if self.store is not None and self.sources:
            raise ValueError("data must name a store or a mixture of sources, not both; set data.store=null")
        if self.sources and self.unique_tokens is not None:
            raise ValueError("data.unique_tokens is for one store; set it for each of data.sources instead")
        return self


def _switch(on: str) -> Callable[[Any], Any]:
    """Lets a setting of several words be written as true or false too."""
    return lambda value: (on if value else "none") if isinstance(value, bool) else value


class TrainConfig(Frozen):
    """How long and in what steps."""

    total_tokens: Budget | None = None
    """Tokens to consume, repeats counted (2**20, 1e9), epochs over the subset (64epochs), or what the
    objective makes of them (2**20inputs, 2**20targets). Null: one epoch; in a mixture each source has its
    own."""
    batch_windows: BatchRows = 16
    """Windows of one optimizer step, over all ranks and micro-batches."""
    micro_batch_windows: BatchRows | None = None
    """Windows of one forward pass on one rank; null: the rank's whole share. Does not change results."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on a GPU with AdamW, and then zero_stage 1 at least; fp32 elsewhere. bf16 accumulates and
    reduces gradients in fp32, and needs zero_stage 1 or more. fp16 needs a GPU."""
    tf32: bool = True
    """On a GPU, whether matrix products of fp32 tensors may use TF32: ten bits of the mantissa, several times
    as fast. A CPU has none."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: what is sharded (1: optimizer states, 2: and gradients, 3: and parameters)."""
    expert_parallel_size: Positive = 1
    """Consecutive ranks that share out the experts of the sparse layers; tokens travel to them. It divides
    the experts and the ranks, and needs zero_stage 1 or 2. Does not change results."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    compile: Annotated[Literal["none", "block", "model"], BeforeValidator(_switch("model"))] = "none"
    """torch.compile of each layer, once for all alike, or of the whole model. true: model."""
    activation_checkpointing: Annotated[Recompute, BeforeValidator(_switch("full"))] = "none"
    """What of a layer's activations is computed again in the backward pass: nothing, all (full, or true), or
    what lies between products with weights and fused attention (selective; not at zero_stage 3)."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Where a loss or gradient is not finite: stop the run as diverged, or go on without that step, which the
    audit then calls not exact. fp16 first tries the step again with a smaller loss scale."""
    rank_timeout_seconds: Annotated[float, Field(gt=0, le=1e7)] = 600.0
    """How long a rank may be silent before the others end with an error that names it."""

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
    """What is added to the loss or to the inputs in training; each may change in the course of the run.

    Dropout is the model's (model.dropout), weight decay the optimizer's. Losses are told without these.
    """

    label_smoothing: Rate = NONE
    """Share of a target's probability that is spread evenly over the vocabulary."""
    z_loss: Coefficient = NONE
    """Weight of the square of the logits' logsumexp (T5: 1e-4)."""
    input_noise: Rate = NONE
    """Share of the tokens that the model reads that are replaced; special ids and sentinels are not."""
    input_noise_by: Literal["unknown", "random"] = "unknown"
    """By the tokenizer's id for what is unknown, or by tokens drawn evenly."""


class AverageConfig(Frozen):
    """An average of the weights, which is scored beside them."""

    name: Literal["ema", "mean"] = "ema"
    """ema: an exponential moving average; mean: all steps alike."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """What an ema keeps of itself at each step."""
    start: Moment = Moment(Fraction(0), "share")
    """When it begins: `75%` averages the last quarter of the run."""


class EvaluateConfig(Frozen):
    """Scoring on sealed sets and on a fixed probe of training windows, without dropout."""

    every_fraction: Annotated[float, Field(ge=1e-6, le=1)] = 0.1
    """Share of the run between two evaluations; the start and the end are always evaluated."""
    max_windows: BatchRows = 64
    """Windows scored of each set: select, report, and the probe of training windows. They are drawn once by
    a fixed key, without replacement."""
    noise_samples: Annotated[Count, Field(gt=0, le=1000)] = 1
    """How often each of these windows is scored, under other noise each time."""
    patience: Positive | None = None
    """End the run early after so many evaluations without a better loss on select; null: never."""


class CheckpointConfig(Frozen):
    """What is kept to go on from."""

    every_fraction: Annotated[float, Field(ge=1e-6, le=1)] = 0.25
    """Share of the run between two checkpoints; the last step is always kept."""
    keep_last: Positive = 2
    """How many of the newest checkpoints stay."""
    keep_every_fraction: Annotated[float, Field(ge=1e-6, le=1)] | None = None
    """Share of the run between two checkpoints that stay for good, beside the newest; null: none do."""


class RunConfig(Frozen):
    """One training run. `reptrain config show CONFIG` prints it with every default filled in."""

    name: FileName | None = None
    """Name of the run folder; null: the file's name."""
    seed: Seed = 0
    """Keys the epoch order, the initial weights and every dropout mask."""
    init_from: str | None = None
    """A trained model whose weights the run begins with: a run folder, one of its checkpoints, an imported
    model, or a Hugging Face folder. Null: weights drawn by `seed`."""
    data: DataConfig
    """Which tokens, how often, in which order."""
    objective: ObjectiveConfig = CausalConfig()
    """What is predicted from what."""
    model: ModelConfig = DecoderConfig()
    """The transformer."""
    train: TrainConfig = TrainConfig()
    """How long and in what steps."""
    optimizer: OptimizerConfig = AdamWConfig()
    """What changes the weights."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the run."""
    regularize: RegularizeConfig = RegularizeConfig()
    """Label smoothing, z-loss, and noise in the inputs."""
    average: AverageConfig | None = None
    """An average of the weights; null: none."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """When and on how much to score."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save and how many to keep."""

    def with_absolute_stores(self) -> Self:
        """The same run with the absolute path of each store, which holds from any working directory."""
        data = self.data
        given: dict[str, Any] = {"store": data.store and str(Path(data.store).absolute())}
        given["sources"] = {
            name: source.model_copy(update={"store": str(Path(source.store).absolute())})
            for name, source in data.sources.items()
        }
        return self.model_copy(update={"data": data.model_copy(update=given)})

    def store_setting(self, name: str) -> str:
        """The dotted key that names the store of a source."""
        return "data.store" if self.data.store is not None else f"data.sources.{name}.store"

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """The sources with every default filled in, by name in the order of the names, so that the order in
        a file changes nothing; a single store counts as a mixture of one. Budgets are in raw tokens or
        epochs."""
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
    def window_tokens(self) -> int:
        """L, the raw tokens of a window."""
        return self.data.window_tokens or self.objective.default_window_tokens

    @property
    def example_shape(self) -> ExampleShape:
        """Positions that encoder and decoder have for a full window."""
        return self.objective.shape(self.window_tokens, self.model.family)

    def micro_batch_windows(self, world_size: int) -> int:
        """Rows of one forward pass: the configured number, or a rank's whole share of a batch.

        Either way whole routing groups.
        """
        group = self.model.moe.group_windows if self.model.moe else 1
        share = -(-self.train.batch_windows // (world_size * group)) * group
        return min(self.train.micro_batch_windows or share, share)

    def on_device(self, device_type: str) -> Self:
        """The run with `train.precision: auto` replaced by the precision of a device, "cuda" or "cpu"."""
        train = self.train.with_precision(device_type, self.optimizer)
        return self.model_copy(update={"train": train})

    @model_validator(mode="after")
    def _low_precision_needs_zero(self) -> Self:
        precision = self.train.precision
        if precision in LOW_PRECISIONS and self.train.zero_stage == 0:
            # In fp16 it also makes a step of its own before the first, with weight decay.
            raise ValueError(
                f"train.precision {precision} needs train.zero_stage 1, 2 or 3: DeepSpeed's stage 0 keeps no"
                " fp32 gradients; set train.zero_stage=1"
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
                " weights within a layer, and torch counts that among what is computed again; set it to full"
            )
        return self

    @model_validator(mode="after")
    def _optimizer_is_whole(self) -> Self:
        stage = self.train.zero_stage
        if self.optimizer.needs_whole_matrices and stage > 0:
            raise ValueError(
                f"optimizer.name {self.optimizer.name} needs train.zero_stage 0, but got {stage}: it works on"
                " whole matrices, and ZeRO partitions them as flat vectors; use adamw, or set"
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
        frozen = self.objective.has_frozen_noise
        if frozen and any(source.cut == "shifted" for source in self.sources.values()):
            raise ValueError(
                "objective.noise frozen needs data.cut fixed: with shifted cuts no window repeats"
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
