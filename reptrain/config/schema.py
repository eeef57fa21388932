"""The configuration of a run: frozen, typed, unknown keys refused. Importing it touches no device."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reptrain.config.quantities import Budget, Count

Positive = Annotated[Count, Field(gt=0)]
NonNegative = Annotated[Count, Field(ge=0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[Count, Field(ge=0, lt=2**63)]


class Frozen(BaseModel):
    """Base of all settings: immutable, and no unknown key passes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataConfig(Frozen):
    """Which tokens, how often, in which order."""

    store: str
    """Folder of the token store (`reptrain tokenize` makes one)."""
    unique_tokens: Positive | None = None
    """U, the size of the subset in tokens; null takes every training token of the store."""
    window_tokens: Positive = 256
    """L, the tokens of a window: the unit of shuffling and the length that the model sees."""
    order: Literal["reshuffle", "same", "mixed"] = "reshuffle"
    """A new permutation of the windows each epoch, one for all, or the epochs shuffled as one list."""
    cut: Literal["fixed", "shifted"] = "fixed"
    """Window boundaries: the same in every epoch, or from a keyed offset in each."""
    subset_seed: Seed = 0
    """Keys the order of documents. Subsets of one seed are nested; `seed` does not change them."""


class ObjectiveConfig(Frozen):
    """What is predicted from what."""

    name: Literal["causal"] = "causal"
    """causal: every token of the window from the tokens before it."""


class DropoutConfig(Frozen):
    """Dropout rates by site."""

    embedding: Probability = 0.0
    """Of the token embeddings."""
    attention: Probability = 0.0
    """Of the attention weights, after the softmax."""
    residual: Probability = 0.0
    """Of each branch before it is added to the residual stream."""
    mlp: Probability = 0.0
    """Of the hidden units of the MLP."""


class DecoderConfig(Frozen):
    """A decoder-only transformer: RMSNorm, RoPE, SwiGLU, no biases (the Llama family)."""

    family: Literal["decoder"] = "decoder"
    """Which transformer; `decoder` is the only family so far."""
    d_model: Positive = 128
    """Width of the residual stream."""
    num_layers: Positive = 4
    """Blocks of attention and MLP."""
    num_heads: Positive = 4
    """Query heads; the head's width is d_model / num_heads, and even."""
    num_kv_heads: Positive | None = None
    """Key and value heads (grouped queries); null: as many as num_heads."""
    d_ff: Positive = 384
    """Hidden units of the gated MLP."""
    vocab_size: Positive | None = None
    """Rows of the embedding; null: the tokenizer's size."""
    tie_embeddings: bool = False
    """Use the embedding as the output head."""
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    """Base of the rotary frequencies."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the mean square in RMSNorm."""
    init_std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of the initial weights; output projections: / sqrt(2 num_layers)."""
    dropout: DropoutConfig = DropoutConfig()
    """Dropout rates by site."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.num_heads or (self.d_model // self.num_heads) % 2:
            raise ValueError(
                f"d_model must be num_heads times an even head width;"
                f" {self.d_model} / {self.num_heads} is not even"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads; {self.kv_heads} does not divide {self.num_heads}"
            )
        return self

    @property
    def kv_heads(self) -> int:
        """Key and value heads with the default filled in."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.d_model // self.num_heads


class OptimizerConfig(Frozen):
    """AdamW (Loshchilov & Hutter 2019). Norms take no weight decay."""

    name: Literal["adamw"] = "adamw"
    """The optimizer."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay, times the learning rate, on matrices only."""
    clip_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest L2 norm of the whole gradient; 0 does not clip."""


class ScheduleConfig(Frozen):
    """Learning rate as a function of the tokens consumed, so that it needs no state."""

    name: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd"] = "cosine"
    """Shape after the warm-up. wsd: constant, then linear decay over the last decay_fraction."""
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of the run's tokens over which the rate rises linearly from 0."""
    final_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Last rate over peak rate (cosine, linear, wsd)."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the run's tokens in the decay (wsd only)."""


class TrainConfig(Frozen):
    """How long and in what steps."""

    total_tokens: Budget = Budget(epochs=1)  # type: ignore[arg-type]
    """Tokens to consume, repeats counted (2**20, 1e9), or epochs over the subset (64epochs)."""
    batch_windows: Positive = 16
    """Windows of one optimizer step, over all ranks and micro-batches."""
    micro_batch_windows: Positive | None = None
    """Windows of one forward pass on one rank; null: the rank's whole share. Does not change results."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 accumulates and reduces gradients in fp32, and needs zero_stage 1 or more. fp16 needs a GPU."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: what is sharded (1: optimizer states, 2: and gradients, 3: and parameters)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    compile: bool = False
    """Run the model through torch.compile."""
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass."""


class EvaluateConfig(Frozen):
    """Scoring on sealed sets and on a fixed probe of training windows, without dropout."""

    every_fraction: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the run between two evaluations; the start and the end are always evaluated."""
    max_windows: Positive = 64
    """Windows scored of each set: select, report, and the probe of training windows."""


class CheckpointConfig(Frozen):
    """What is kept to go on from."""

    every_fraction: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the run between two checkpoints; the last step is always kept."""
    keep_last: Positive = 2
    """How many of the newest checkpoints stay."""


class RunConfig(Frozen):
    """One training run. `reptrain config show CONFIG` prints it with every default filled in."""

    name: str | None = None
    """Name of the run folder; null: the file's name."""
    seed: Seed = 0
    """Keys the epoch order, the initial weights and every dropout mask."""
    data: DataConfig
    """Which tokens, how often, in which order."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What is predicted from what."""
    model: DecoderConfig = DecoderConfig()
    """The transformer."""
    train: TrainConfig = TrainConfig()
    """How long and in what steps."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its settings."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the run."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """When and on how much to score."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save and how many to keep."""

    @model_validator(mode="after")
    def _bf16_needs_zero(self) -> Self:
        if self.train.precision == "bf16" and self.train.zero_stage == 0:
            raise ValueError(
                "train.precision bf16 needs train.zero_stage 1, 2 or 3: DeepSpeed's stage 0 keeps no fp32"
                " gradients; set train.zero_stage=1"
            )
        return self
