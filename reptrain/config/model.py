"""The configuration of a transformer: a decoder or an encoder-decoder, dense or sparse, shared or not."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Discriminator, Field, Tag, model_validator

from reptrain.config.base import BatchRows, Frozen, Layers, NonNegative, Positive, Rows, Width
from reptrain.config.quantities import Count
from reptrain.config.rope import RopeScaling
from reptrain.config.scheduled import NONE, Rate

Activation = Literal["swiglu", "geglu", "gelu", "relu"]
"""Activation of an MLP: gated SiLU, gated GELU, GELU (both in tanh form), or ReLU."""


def is_gated(activation: Activation) -> bool:
    """Whether the MLP has a third matrix, for the gate."""
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
"""Attention projections with biases: none; queries, keys and values; or also the output projection."""

Recompute = Literal["none", "selective", "full"]
"""Activations to recompute in the backward pass: none; all but the outputs of matrix products and of fused
attention; or all."""


class DropoutConfig(Frozen):
    """Dropout rates by site; each may be scheduled, as in `{value: 0.1, start: 50%}`."""

    embedding: Rate = NONE
    """Rate on the token embeddings."""
    attention: Rate = NONE
    """Rate on the attention weights, after the softmax."""
    residual: Rate = NONE
    """Rate on the output of each branch, before the residual add."""
    mlp: Rate = NONE
    """Rate on the hidden units of the MLP."""
    expert: Rate = NONE
    """Rate on the hidden units of experts."""
    path: Rate = NONE
    """Rate of dropping a row's whole branch, before the residual add (DropPath)."""
    mlp_output: Rate = NONE
    """Rate of masking the whole output of the MLP, dense or sparse, at a position."""
    expert_output: Rate = NONE
    """Rate of masking the whole output of an expert for a token; the token's other experts are kept."""


# Over all layers.
_MOST_EXPERTS = 2**20
# torch's grouped_mm needs rows of a multiple of 16 bytes, here in bf16, which any run may use.
_GROUPED_MULTIPLE = 8
_NOT_GROUPED = f"must be a multiple of {_GROUPED_MULTIPLE} for moe.backend grouped (loop accepts any)"


class MoEConfig(Frozen):
    """Sparse layers: a router dispatches each token to top_k experts, each an MLP of the model's kind.

    The router losses and the capacity are computed per routing group, so they do not depend on the
    micro-batch or the number of ranks. Switch is `top_k: 1`, `capacity_factor: 1.25` and `jitter: 0.01`;
    ST-MoE `top_k: 2`, `capacity_factor: 1.25` and `shared_d_ff` as wide as d_ff. The losses of the sparse
    layers are summed; other trainers average them (docs/decisions/sparse-layers.md).
    """

    num_experts: Annotated[Count, Field(ge=2, le=2**15)]
    """Experts per sparse layer."""
    top_k: Positive = 2
    """Experts per token."""
    every: Positive = 1
    """Every N-th layer is sparse; the others are dense."""
    d_ff: Width | None = None
    """Hidden units of an expert; null: d_ff of the dense MLP."""
    shared_d_ff: Annotated[Count, Field(ge=0, le=2**24)] = 0
    """Hidden units of a shared expert that processes every token; 0: none."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """Function of the router's logits that gives the expert scores."""
    normalize: bool | None = None
    """Whether to divide the scores of a token's experts by their sum; null: true if top_k is above 1."""
    balance_coefficient: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the balance loss E sum(f p), which is 1 for equal load."""
    z_coefficient: Annotated[float, Field(ge=0)] = 0.001
    """Weight of the router z-loss, the mean squared logsumexp of the logits."""
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """In training, the router's input is multiplied by noise from [1 - jitter, 1 + jitter)."""
    bias_rate: Annotated[float, Field(ge=0)] = 0.0
    """Step of the expert bias, which is added to the selection scores: up for an expert below its share of
    tokens, down for one above (Wang et al. 2024); 0: no bias."""
    capacity_factor: Annotated[float, Field(gt=0)] | None = None
    """Capacity of an expert per routing group: this times tokens / num_experts, whatever top_k is, filled in
    the order of the tokens; null: unlimited."""
    eval_capacity_factor: Annotated[float, Field(gt=0)] | None = None
    """Capacity factor in evaluation; null: capacity_factor."""
    min_capacity: NonNegative = 4
    """Smallest capacity of an expert per routing group, if there is a capacity factor."""
    group_windows: BatchRows = 1
    """Consecutive windows of the global batch per routing group; it divides the micro-batch."""
    backend: Literal["grouped", "megablocks", "loop"] = "grouped"
    """Implementation of the experts: grouped (one call of torch, on A100 of our kernels), megablocks
    (`make megablocks`), or loop (one expert after another, the reference)."""

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k must be at most num_experts {self.num_experts}; {self.top_k} was given")
        if self.backend == "grouped" and self.d_ff is not None and self.d_ff % _GROUPED_MULTIPLE:
            raise ValueError(f"d_ff {_NOT_GROUPED}; {self.d_ff} is not")
        if self.eval_capacity_factor is not None and self.capacity_factor is None:
            raise ValueError("eval_capacity_factor needs capacity_factor; set both or neither")
        return self

    @property
    def normalizes(self) -> bool:
        """`normalize` with the default filled in."""
        return self.top_k > 1 if self.normalize is None else self.normalize


def _check_widths(moe: MoEConfig | None, d_model: int, d_ff: int) -> None:
    """Check that the backend supports the sizes of the experts' matrices."""
    widths = {"d_model": d_model} | ({"d_ff": d_ff} if moe is not None and moe.d_ff is None else {})
    for name, width in widths.items():
        if moe is not None and moe.backend == "grouped" and width % _GROUPED_MULTIPLE:
            raise ValueError(f"{name} {_NOT_GROUPED}; {width} is not")


def _check_stack(name: str, num_layers: int, stored: int | None, moe: MoEConfig | None) -> None:
    """Check that stored layers divide the layers, and the pattern of sparse layers the stored ones."""
    if stored is not None and (stored > num_layers or num_layers % stored):
        raise ValueError(f"{name} must divide the {num_layers} layers; {stored} does not")
    kept = stored or num_layers
    if moe is not None and kept // moe.every * moe.num_experts > _MOST_EXPERTS:
        raise ValueError(f"moe.num_experts times the sparse layers must be at most {_MOST_EXPERTS}")
    if moe is not None and (moe.every > kept or (stored is not None and kept % moe.every)):
        rule = "divide" if stored is not None else "be at most"
        raise ValueError(f"moe.every must {rule} the {kept} layers of the stack; {moe.every} was given")


class StackShape(NamedTuple):
    """The layers of a stack: layer l uses the weights of stored layer l mod `stored`."""

    num_layers: int
    stored: int
    moe: MoEConfig | None

    def sparse(self, layer: int) -> MoEConfig | None:
        """The layer's MoE configuration; None if it is dense."""
        if self.moe is None or layer % self.stored % self.moe.every != self.moe.every - 1:
            return None
        return self.moe

    @property
    def num_sparse(self) -> int:
        """Sparse layers, counted each time they run."""
        return sum(self.sparse(layer) is not None for layer in range(self.num_layers))

    @property
    def stored_sparse(self) -> int:
        """Stored sparse layers."""
        return sum(self.sparse(layer) is not None for layer in range(self.stored))


class DecoderConfig(Frozen):
    """A decoder-only transformer. The defaults follow the Llama family.

    The GPT family is `norm: layernorm`, `positions: learned`, `mlp: gelu`, `bias: true` and
    `tie_embeddings: true`.
    """

    family: Literal["decoder"] = "decoder"
    """The model family."""
    d_model: Width = 128
    """Width of the residual stream."""
    num_layers: Layers = 4
    """Blocks of attention and MLP."""
    num_stored_layers: Layers | None = None
    """Blocks with their own weights, repeated in cycles (parameter sharing); null: all."""
    num_heads: Width = 4
    """Query heads."""
    head_dim: Width | None = None
    """Width of a head, even; null: d_model / num_heads."""
    num_kv_heads: Width | None = None
    """Key and value heads (grouped-query attention); null: num_heads."""
    d_ff: Width = 384
    """Hidden units of the MLP."""
    mlp: Activation = "swiglu"
    """Activation of the MLP; swiglu and geglu are gated."""
    norm: Norm = "rmsnorm"
    """Norm before attention, MLP and head."""
    parallel_block: bool = False
    """Whether attention and MLP read the output of one norm, and their outputs are added together (PaLM)."""
    positions: Literal["rope", "learned", "relative"] = "rope"
    """Position encoding: rotary, a learned embedding that is added to the token's, or the relative positions
    of Transformer-XL (Gopher, Chinchilla). With relative, attention runs in torch with a mask of all
    pairs."""
    max_positions: Rows | None = None
    """Number of learned positions, at least those of a window; null with rope and relative."""
    bias: bool = False
    """Biases in attention, MLP and LayerNorm. The head has none."""
    attention_bias: AttentionBias | None = None
    """Biases in attention: none, of queries, keys and values (qkv, as in Qwen2), or of the output too (all);
    null: all or none, as set by bias."""
    mlp_bias: bool | None = None
    """Biases in the MLP; null: bias."""
    sliding_window: Positive | None = None
    """A position attends to itself and the positions before it, this many in all (Mistral); null: no limit.
    On CUDA, runs with longer windows use torch's attention with a mask instead of the fused kernel."""
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
    """muP: the width that lr and init_std were tuned for. At another d_model, both are scaled for the layers'
    matrices, and so are the logits. Null: no muP."""
    moe: MoEConfig | None = None
    """Sparse layers; null: all layers are dense."""
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
        if self.positions == "relative" and self.d_model % 2:
            raise ValueError(f"d_model must be even where positions is relative; {self.d_model} is not")
        if self.positions == "relative" and self.mup_base_width is not None:
            raise ValueError(
                "mup_base_width must be null where positions is relative: there is no muP rule for them"
            )
        if self.mup_base_width is not None and self.moe is not None:
            raise ValueError("mup_base_width must be null with moe: there is no muP rule for routers")
        return self

    @property
    def mup_ratio(self) -> float:
        """d_model over mup_base_width; 1 without muP."""
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
    """The model family."""
    d_model: Width = 512
    """Width of the residual stream."""
    num_encoder_layers: Layers = 8
    """Blocks of the encoder."""
    num_decoder_layers: Layers = 8
    """Blocks of the decoder."""
    num_stored_encoder_layers: Layers | None = None
    """Blocks of the encoder with their own weights, repeated in cycles (parameter sharing); null: all."""
    num_stored_decoder_layers: Layers | None = None
    """Blocks of the decoder with their own weights; null: all."""
    num_heads: Width = 6
    """Heads of every attention."""
    head_dim: Width = 64
    """Width of a head; num_heads x head_dim need not be d_model."""
    d_ff: Width = 1024
    """Hidden units of the MLP."""
    mlp: Activation = "geglu"
    """Activation of the MLP: gated GELU (geglu, T5 1.1), gated SiLU (swiglu), ReLU (relu, T5 1.0) or GELU
    (gelu). GELU is in tanh form."""
    tie_embeddings: bool = False
    """Use the embedding as the output head (T5 1.0)."""
    vocab_size: Rows | None = None
    """Rows of the embedding; null: the tokenizer's size."""
    relative_buckets: Annotated[Count, Field(ge=4, le=2**20, multiple_of=4)] = 32
    """Buckets of relative positions; the encoder uses half for each direction."""
    relative_max_distance: Annotated[Count, Field(gt=0, lt=2**31)] = 128
    """Distances from here on share the last bucket."""
    relative_bias_per_layer: bool = False
    """Whether each layer has its own table of position biases (umT5), instead of one per stack."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the mean square in RMSNorm."""
    init_scale: Annotated[float, Field(gt=0)] = 1.0
    """Scale of the variance of initial matrices, 1 / inputs; Switch and ST-MoE use 0.1."""
    moe: MoEConfig | None = None
    """Sparse layers of encoder and decoder; null: all layers are dense."""
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
"""The transformer, chosen by its family."""
