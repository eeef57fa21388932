"""The configuration of a transformer: a decoder or an encoder-decoder, dense or sparse, shared or not."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Discriminator, Field, Tag, model_validator

from reptrain.config.base import BatchRows, Frozen, Layers, NonNegative, Positive, Rows, Width
from reptrain.config.quantities import Count
from reptrain.config.rope import RopeScaling
from reptrain.config.scheduled import NONE, Rate

Activation = Literal["swiglu", "geglu", "gelu", "relu"]
"""Of the hidden units of an MLP: gated by SiLU, gated by GELU, GELU alone (both in tanh form), or ReLU."""


def is_gated(activation: Activation) -> bool:
    """Whether the MLP has a third matrix, of the gate."""
    return activation in ("swiglu", "geglu")


Norm = Literal["rmsnorm", "layernorm"]
"""RMSNorm with a gain, or LayerNorm with a gain and, in models with biases, a bias."""


def norm_vectors(norm: Norm, *, has_bias: bool) -> int:
    """Number of parameter vectors of a norm, each as long as the residual stream is wide.

    Args:
        norm: The norm.
        has_bias: Whether the model has biases.
    """
    return 2 if norm == "layernorm" and has_bias else 1


AttentionBias = Literal["none", "qkv", "all"]
"""Which projections of an attention have biases: none, those of queries, keys and values, or these and the
output's."""

Recompute = Literal["none", "selective", "full"]
"""What of a layer's activations is computed again in the backward pass: nothing, what lies between products
with weights and fused attention, or all."""


class DropoutConfig(Frozen):
    """Dropout rates by site; each may change in the course of the run, as in `{value: 0.1, start: 50%}`."""

    embedding: Rate = NONE
    """Of the token embeddings."""
    attention: Rate = NONE
    """Of the attention weights, after the softmax."""
    residual: Rate = NONE
    """Of each branch before it is added to the residual stream."""
    mlp: Rate = NONE
    """Of the hidden units of the MLP."""
    expert: Rate = NONE
    """Of the hidden units of the experts of sparse layers."""
    path: Rate = NONE
    """Of a row's whole branch before it is added to the residual stream (DropPath)."""


# In all layers together.
_MOST_EXPERTS = 2**20
# torch's grouped product wants rows of whole 16 bytes, here of bf16, which any run may choose.
_GROUPED_MULTIPLE = 8
_NOT_GROUPED = f"must be a multiple of {_GROUPED_MULTIPLE} for moe.backend grouped (loop takes any)"


class MoEConfig(Frozen):
    """Sparse layers: a router sends each token to a few of many experts, each an MLP of the model's kind.

    What is computed over many tokens (the losses, the capacity) is computed over routing groups, so that the
    micro-batch and the number of ranks change nothing. Switch is `top_k: 1`, `capacity_factor: 1.25` and
    `jitter: 0.01`; ST-MoE `top_k: 2`, `capacity_factor: 1.25` and `shared_d_ff` as wide as d_ff. The losses
    of the sparse layers are added up; others average them (docs/decisions/sparse-layers.md).
    """

    num_experts: Annotated[Count, Field(ge=2, le=2**15)]
    """Experts of a sparse layer."""
    top_k: Positive = 2
    """Experts of a token."""
    every: Positive = 1
    """The last of each so many layers is sparse, the others are dense."""
    d_ff: Width | None = None
    """Hidden units of an expert; null: as many as the dense MLP's."""
    shared_d_ff: Annotated[Count, Field(ge=0, le=2**24)] = 0
    """Hidden units of an MLP that all tokens pass beside their experts; 0: none."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """Of the router's logits: how much of a token an expert gets."""
    normalize: bool | None = None
    """Divide the scores of a token's experts by their sum; null: where top_k is above 1."""
    balance_coefficient: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the balance loss E sum(f p), which is 1 where all experts get as much."""
    z_coefficient: Annotated[float, Field(ge=0)] = 0.001
    """Weight of the router z-loss, the mean square of the logits' logsumexp."""
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The router's input is multiplied by noise from [1 - jitter, 1 + jitter) in training."""
    bias_rate: Annotated[float, Field(ge=0)] = 0.0
    """What a step adds to the selection score of an expert that got less than its share, and takes from
    one that got more (Wang et al. 2024); 0 balances by the loss alone."""
    capacity_factor: Annotated[float, Field(gt=0)] | None = None
    """An expert takes at most this times tokens / num_experts of a routing group, in the order of the
    tokens, whatever top_k is; null: all that come."""
    eval_capacity_factor: Annotated[float, Field(gt=0)] | None = None
    """The same in evaluation; null: as in training."""
    min_capacity: NonNegative = 4
    """With a capacity factor an expert takes at least so many of a routing group."""
    group_windows: BatchRows = 1
    """Consecutive windows of the global batch that make a routing group; it divides the micro-batch."""
    backend: Literal["grouped", "megablocks", "loop"] = "grouped"
    """How the experts are multiplied: all in one call (by torch, on A100 by our own kernels), by MegaBlocks
    (`make megablocks`), or one after the other (the plain reference)."""

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k must be at most num_experts {self.num_experts}; {self.top_k} was given")
        if self.backend == "grouped" and self.d_ff is not None and self.d_ff % _GROUPED_MULTIPLE:
            raise ValueError(f"d_ff {_NOT_GROUPED}; {self.d_ff} is not")
        if self.eval_capacity_factor is not None and self.capacity_factor is None:
            raise ValueError("eval_capacity_factor needs a capacity_factor; leave it out or set both")
        return self

    @property
    def normalizes(self) -> bool:
        """`normalize` with the default filled in."""
        return self.top_k > 1 if self.normalize is None else self.normalize


def _check_widths(moe: MoEConfig | None, d_model: int, d_ff: int) -> None:
    """The experts' matrices have sizes that their backend multiplies."""
    widths = {"d_model": d_model} | ({"d_ff": d_ff} if moe is not None and moe.d_ff is None else {})
    for name, width in widths.items():
        if moe is not None and moe.backend == "grouped" and width % _GROUPED_MULTIPLE:
            raise ValueError(f"{name} {_NOT_GROUPED}; {width} is not")


def _check_stack(name: str, num_layers: int, stored: int | None, moe: MoEConfig | None) -> None:
    """Stored layers divide the layers, and the pattern of sparse layers divides the stored ones."""
    if stored is not None and (stored > num_layers or num_layers % stored):
        raise ValueError(f"{name} must divide the {num_layers} layers; {stored} does not")
    kept = stored or num_layers
    if moe is not None and kept // moe.every * moe.num_experts > _MOST_EXPERTS:
        raise ValueError(f"moe.num_experts times the sparse layers must be at most {_MOST_EXPERTS}")
    if moe is not None and (moe.every > kept or (stored is not None and kept % moe.every)):
        rule = "divide" if stored is not None else "be at most"
        raise ValueError(f"moe.every must {rule} the {kept} layers of the stack; {moe.every} was given")


class StackShape(NamedTuple):
    """The layers of a stack: layer l runs with the weights of stored layer l mod `stored`."""

    num_layers: int
    stored: int
    moe: MoEConfig | None

    def sparse(self, layer: int) -> MoEConfig | None:
        """How a layer is sparse; None where it is dense."""
        if self.moe is None or layer % self.stored % self.moe.every != self.moe.every - 1:
            return None
        return self.moe

    @property
    def num_sparse(self) -> int:
        """Sparse layers, each as often as it runs."""
        return sum(self.sparse(layer) is not None for layer in range(self.num_layers))

    @property
    def stored_sparse(self) -> int:
        """Sparse layers that are stored."""
        return sum(self.sparse(layer) is not None for layer in range(self.stored))


class DecoderConfig(Frozen):
    """A decoder-only transformer. The defaults are those of the Llama family.

    The GPT family is `norm: layernorm`, `positions: learned`, `mlp: gelu`, `bias: true` and
    `tie_embeddings: true`.
    """

    family: Literal["decoder"] = "decoder"
    """decoder: this family."""
    d_model: Width = 128
    """Width of the residual stream."""
    num_layers: Layers = 4
    """Blocks of attention and MLP."""
    num_stored_layers: Layers | None = None
    """Blocks that have weights of their own, run in cycles (parameter sharing); null: all."""
    num_heads: Width = 4
    """Query heads."""
    head_dim: Width | None = None
    """Width of a head, even; null: d_model / num_heads."""
    num_kv_heads: Width | None = None
    """Key and value heads (grouped queries); null: as many as num_heads."""
    d_ff: Width = 384
    """Hidden units of the MLP."""
    mlp: Activation = "swiglu"
    """Of the hidden units: swiglu and geglu are gated, gelu and relu are not."""
    norm: Norm = "rmsnorm"
    """Before attention and MLP, and before the head."""
    positions: Literal["rope", "learned"] = "rope"
    """Queries and keys rotated by position, or an embedding of the place in the window beside the token's."""
    max_positions: Rows | None = None
    """Rows of the learned positions, which a window must not exceed; null for rope."""
    bias: bool = False
    """Biases in attention, MLP and LayerNorm. The head has none."""
    attention_bias: AttentionBias | None = None
    """Biases in attention: none, of queries, keys and values (qkv, as in Qwen2), or of the output too (all);
    null: all or none, as bias says."""
    mlp_bias: bool | None = None
    """Biases in the MLP; null: as bias says."""
    sliding_window: Positive | None = None
    """A position attends only to positions fewer than this many places away, itself among them (Mistral);
    null: to all that the objective lets it see. On CUDA, runs with longer windows use torch's attention with
    a mask instead of the fused kernel."""
    vocab_size: Rows | None = None
    """Rows of the embedding; null: the tokenizer's size."""
    tie_embeddings: bool = False
    """Use the embedding as the output head."""
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Scaling of the rotary frequencies (name: linear or llama3); null: none."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the mean square in RMSNorm, to the variance in LayerNorm."""
    init_std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of the initial weights; output projections: / sqrt(2 num_layers)."""
    mup_base_width: Positive | None = None
    """The width that the learning rate and init_std are meant for: at another the layers' matrices take both
    scaled, and so are the logits (muP), so that what was tuned there holds. Null: as they are."""
    moe: MoEConfig | None = None
    """Sparse layers; null: all are dense."""
    dropout: DropoutConfig = DropoutConfig()
    """Dropout rates by site."""

    @model_validator(mode="after")
    def _layers_divide(self) -> Self:
        _check_widths(self.moe, self.d_model, self.d_ff)
        _check_stack("num_stored_layers", self.num_layers, self.num_stored_layers, self.moe)
        return self

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        if (self.positions == "learned") != (self.max_positions is not None):
            raise ValueError(
                f"max_positions must be set where positions is learned, and nowhere else;"
                f" {self.max_positions} was given with {self.positions}"
            )
        if self.bias and self.moe is not None:
            raise ValueError("bias must be false with moe: experts have none; set model.bias=false")
        if self.mlp_bias and self.moe is not None:
            raise ValueError("mlp_bias must be false with moe: experts have none; set model.mlp_bias=false")
        if self.rope_scaling is not None and self.positions != "rope":
            raise ValueError(f"rope_scaling must be null where positions is {self.positions}")
        if self.mup_base_width is not None and self.moe is not None:
            raise ValueError("mup_base_width must be null with moe: no rule for routers is known here")
        return self

    @property
    def mup_ratio(self) -> float:
        """d_model over the width that muP scales from; 1 without."""
        return self.d_model / (self.mup_base_width or self.d_model)

    @property
    def stack(self) -> StackShape:
        """Its layers."""
        return StackShape(self.num_layers, self.num_stored_layers or self.num_layers, self.moe)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.head_dim is not None and self.head_dim % 2:
            raise ValueError(f"head_dim must be even; {self.head_dim} is not")
        if self.head_dim is None and (self.d_model % self.num_heads or (self.d_model // self.num_heads) % 2):
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
    def head_width(self) -> int:
        """Width of a head with the default filled in."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def attention_biases(self) -> AttentionBias:
        """`attention_bias` with the default filled in."""
        return self.attention_bias or ("all" if self.bias else "none")

    @property
    def has_mlp_bias(self) -> bool:
        """`mlp_bias` with the default filled in."""
        return self.bias if self.mlp_bias is None else self.mlp_bias


class T5Config(Frozen):
    """An encoder-decoder with relative position buckets (T5). The defaults are those of T5 1.1.

    T5 1.0 is `mlp: relu` with `tie_embeddings: true`, which also scales the decoder's output by
    d_model ** -0.5 before the head.
    """

    family: Literal["t5"]
    """t5: this family."""
    d_model: Width = 512
    """Width of the residual stream."""
    num_encoder_layers: Layers = 8
    """Blocks of the encoder."""
    num_decoder_layers: Layers = 8
    """Blocks of the decoder."""
    num_stored_encoder_layers: Layers | None = None
    """Blocks of the encoder that have weights of their own, run in cycles (parameter sharing); null: all."""
    num_stored_decoder_layers: Layers | None = None
    """The same of the decoder."""
    num_heads: Width = 6
    """Heads of every attention."""
    head_dim: Width = 64
    """Width of a head; num_heads x head_dim need not be d_model."""
    d_ff: Width = 1024
    """Hidden units of the MLP."""
    mlp: Activation = "geglu"
    """Of the hidden units: gated by GELU (geglu, as in 1.1) or SiLU (swiglu), or plain ReLU (relu, as in 1.0)
    or GELU (gelu). GELU is its tanh form."""
    tie_embeddings: bool = False
    """Use the embedding as the output head, as in 1.0."""
    vocab_size: Rows | None = None
    """Rows of the embedding; null: the tokenizer's size."""
    relative_buckets: Annotated[Count, Field(ge=4, le=2**20, multiple_of=4)] = 32
    """Buckets of the distance between positions; the encoder spends half on each direction."""
    relative_max_distance: Annotated[Count, Field(gt=0, lt=2**31)] = 128
    """From this distance on, all positions share the last bucket."""
    relative_bias_per_layer: bool = False
    """A table of position biases in each layer (umT5), instead of one table for each stack."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the mean square in RMSNorm."""
    init_scale: Annotated[float, Field(gt=0)] = 1.0
    """Times the variance of the initial matrices, which is 1 / inputs; Switch and ST-MoE take 0.1."""
    moe: MoEConfig | None = None
    """Sparse layers of encoder and decoder; null: all are dense."""
    dropout: DropoutConfig = DropoutConfig()
    """Dropout rates by site."""

    @model_validator(mode="after")
    def _layers_divide(self) -> Self:
        _check_widths(self.moe, self.d_model, self.d_ff)
        for part, shape in (("encoder", self.encoder), ("decoder", self.decoder)):
            stored = getattr(self, f"num_stored_{part}_layers")
            _check_stack(f"num_stored_{part}_layers", shape.num_layers, stored, self.moe)
        return self

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.head_dim

    @property
    def encoder(self) -> StackShape:
        """The encoder's layers."""
        layers = self.num_encoder_layers
        return StackShape(layers, self.num_stored_encoder_layers or layers, self.moe)

    @property
    def decoder(self) -> StackShape:
        """The decoder's layers."""
        layers = self.num_decoder_layers
        return StackShape(layers, self.num_stored_decoder_layers or layers, self.moe)

    @model_validator(mode="after")
    def _buckets_below_distance(self) -> Self:
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"relative_max_distance must be above relative_buckets / 2;"
                f" {self.relative_max_distance} is not above {self.relative_buckets // 2}"
            )
        return self


def _family(value: Any) -> str:
    family = value.get("family") if isinstance(value, dict) else getattr(value, "family", None)
    return "decoder" if family is None else str(family)


ModelConfig = Annotated[
    Annotated[DecoderConfig, Tag("decoder")] | Annotated[T5Config, Tag("t5")], Discriminator(_family)
]
"""The transformer, told by its family."""
