"""The configuration of a run: frozen, typed, without unknown keys. Importing it touches no device."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from reptrain.config.base import LARGEST_BATCH, FileName, Frozen, Seed
from reptrain.config.distill import DistillConfig
from reptrain.config.model import DecoderConfig, ModelConfig
from reptrain.config.objectives import CausalConfig, ExampleShape, ObjectiveConfig
from reptrain.config.optimizers import AdamWConfig, OptimizerConfig, ScheduleConfig
from reptrain.config.quantities import Budget
from reptrain.config.sections import (
    ONE_EPOCH,
    AverageConfig,
    BranchConfig,
    CheckpointConfig,
    DataConfig,
    EvaluateConfig,
    RegularizeConfig,
    SeedsConfig,
    SourceConfig,
    TrainConfig,
)
from reptrain.files import absolute

LOW_PRECISIONS = ("bf16", "fp16")


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

    def micro_batch_windows(self, data_ranks: int) -> int:
        """Rows per forward pass: the configured number, or a rank's whole share of a batch.

        Always a multiple of the routing group.

        Args:
            data_ranks: Number of ranks, or of groups of them, that have different rows.
        """
        group = self.model.moe.group_windows if self.model.moe else 1
        share = -(-self.train.batch_windows // (data_ranks * group)) * group
        return min(self.train.micro_batch_windows or share, share)

    def on_device(self, device_type: str) -> Self:
        """The run with `train.precision: auto` replaced by the precision of a device, "cuda" or "cpu"."""
        train = self.train.with_precision(device_type, self.optimizer)
        return self.model_copy(update={"train": train})

    @model_validator(mode="after")
    def _batch_is_in_windows(self) -> Self:
        tokens, window = self.train.batch_tokens, self.window_tokens
        if tokens is None:
            return self
        if "batch_windows" in self.train.model_fields_set:
            raise ValueError(
                f"train.batch_tokens {tokens} and train.batch_windows {self.train.batch_windows} both set the"
                " batch; leave one of the two out"
            )
        windows, rest = divmod(tokens, window)
        if rest or windows > LARGEST_BATCH:
            raise ValueError(
                f"train.batch_tokens must be a multiple of data.window_tokens {window}, and at most"
                f" {LARGEST_BATCH} times as much; {tokens} is not; the next multiple is"
                f" {min(windows + 1, LARGEST_BATCH) * window}"
            )
        changed = self.train.model_copy(update={"batch_windows": windows, "batch_tokens": None})
        # The model is frozen for its users.
        object.__setattr__(self, "train", changed)
        return self

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
    def _sequences_can_be_split(self) -> Self:
        size, model = self.train.sequence_parallel_size, self.model
        if size == 1:
            return self
        if model.moe is not None:
            raise ValueError(
                f"train.sequence_parallel_size {size} needs a dense model, for routers balance the tokens"
                " of whole windows; set train.sequence_parallel_size=1, or model.moe=null"
            )
        if model.num_heads % size:
            raise ValueError(
                f"train.sequence_parallel_size must divide model.num_heads {model.num_heads}; {size} does not"
            )
        kv_heads = model.kv_heads if isinstance(model, DecoderConfig) else model.num_heads
        if kv_heads % size and size % kv_heads:
            raise ValueError(
                f"train.sequence_parallel_size must be a divisor or a multiple of model.num_kv_heads"
                f" {kv_heads}; {size} is neither"
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
