"""transformers' T5 1.0 and 1.1, mT5, umT5 and Switch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from reptrain.config.model import Activation, ModelConfig, MoEConfig, StackShape, T5Config, is_gated
from reptrain.errors import HubError
from reptrain.hub.architecture import (
    SILU,
    TANH_GELU,
    Architecture,
    Settings,
    activation,
    check_writable,
    number,
)
from reptrain.hub.keys import REQUIRED, Keys
from reptrain.hub.parts import Part
from reptrain.hub.router_losses import published, switch_factor

_ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}
_COPIES = frozenset(f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder"))
# Capacity of a Switch expert in tokens of one sequence: larger than any sequence.
_NO_LIMIT = 2**31 - 1


def _parts(config: ModelConfig) -> Iterator[Part]:
    assert isinstance(config, T5Config)
    yield Part("shared.weight", ("embedding.weight",))
    if config.moe is not None and not config.tie_embeddings:
        # An untied Switch has an embedding in each stack, and uses those.
        for name in sorted(_COPIES):
            yield Part(name, ("embedding.weight",))
    for name, shape in (("encoder", config.encoder), ("decoder", config.decoder)):
        yield from _stack(config, name, shape)
    if not config.tie_embeddings:
        yield Part("lm_head.weight", ("head.weight",))


def _stack(config: T5Config, name: str, shape: StackShape) -> Iterator[Part]:
    bias = "layer.0.SelfAttention.relative_attention_bias.weight"
    if not config.relative_bias_per_layer:
        yield Part(f"{name}.block.0.{bias}", (f"{name}.relative_bias.table.weight",))
    for layer in range(shape.num_layers):
        # A layer with shared weights gets a copy of them.
        ours, theirs = f"{name}.blocks.{layer % shape.stored}", f"{name}.block.{layer}.layer"
        if config.relative_bias_per_layer:
            yield Part(f"{name}.block.{layer}.{bias}", (f"{ours}.relative_bias.table.weight",))
        branches = [("attention", "SelfAttention")]
        branches += [("cross_attention", "EncDecAttention")] if name == "decoder" else []
        for place, (branch, attention) in enumerate(branches):
            norm = branch.replace("attention", "norm") if place else "attention_norm"
            yield Part(f"{theirs}.{place}.layer_norm.weight", (f"{ours}.{norm}.weight",))
            for mine, its in _ATTENTION.items():
                yield Part(f"{theirs}.{place}.{attention}.{its}.weight", (f"{ours}.{branch}.{mine}.weight",))
        place = len(branches)
        yield Part(f"{theirs}.{place}.layer_norm.weight", (f"{ours}.mlp_norm.weight",))
        yield from _mlp(config, f"{ours}.mlp", f"{theirs}.{place}", shape.sparse(layer))
    yield Part(f"{name}.final_layer_norm.weight", (f"{name}.norm.weight",))


def _mlp(config: T5Config, ours: str, theirs: str, sparse: MoEConfig | None) -> Iterator[Part]:
    if is_gated(config.mlp):
        names = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
    else:
        names = {"up": "wi", "down": "wo"}
    if sparse is None:
        within = f"{theirs}.DenseReluDense" if config.moe is None else f"{theirs}.mlp"
        for mine, its in names.items():
            yield Part(f"{within}.{its}.weight", (f"{ours}.{mine}.weight",))
        return
    yield Part(f"{theirs}.mlp.router.classifier.weight", (f"{ours}.router.weight",))
    for expert in range(sparse.num_experts):
        for mine, its in names.items():
            name = f"{theirs}.mlp.experts.expert_{expert}.{its}.weight"
            yield Part(name, (f"{ours}.experts.{mine}",), expert)


def _write_common(config: T5Config) -> dict[str, Any]:
    return {
        "d_model": config.d_model,
        "d_kv": config.head_dim,
        "d_ff": config.d_ff,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "dropout_rate": config.dropout.residual.value,
        "layer_norm_epsilon": config.norm_eps,
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _read_common(
    settings: Settings, *, mlp: Activation, tied: bool, moe: MoEConfig | None = None, per_layer: bool = False
) -> T5Config:
    if settings.get("is_encoder_decoder") is False:
        raise HubError(
            "is_encoder_decoder in config.json",
            got="false: an encoder only",
            rule="must be true",
            remedy="reptrain does not support encoder-only models. Save the whole model.",
        )
    layers = number(settings, "num_layers")
    return T5Config.model_validate(
        {
            "family": "t5",
            "d_model": number(settings, "d_model"),
            "num_encoder_layers": layers,
            "num_decoder_layers": number(settings, "num_decoder_layers", layers),
            "num_heads": number(settings, "num_heads"),
            "head_dim": number(settings, "d_kv"),
            "d_ff": number(settings, "d_ff"),
            "mlp": mlp,
            "tie_embeddings": tied,
            "vocab_size": number(settings, "vocab_size"),
            "relative_buckets": number(settings, "relative_attention_num_buckets"),
            "relative_max_distance": number(settings, "relative_attention_max_distance"),
            "relative_bias_per_layer": per_layer,
            "norm_eps": number(settings, "layer_norm_epsilon"),
            "moe": moe,
        }
    )


_PROJ = {"relu": "relu", "gelu": "gelu_new", "geglu": "gated-gelu", "swiglu": "gated-silu"}
"""`feed_forward_proj` for each of our activations."""


def _write_t5(config: ModelConfig) -> dict[str, Any]:
    assert isinstance(config, T5Config)
    check_writable({"mlp": (config.mlp in _PROJ, config.mlp, f"must be {' or '.join(_PROJ)}, as in T5")})
    return _write_common(config) | {
        "feed_forward_proj": _PROJ[config.mlp],
        "dense_act_fn": _PROJ[config.mlp].replace("gated-gelu", "gelu_new").removeprefix("gated-"),
        "is_gated_act": is_gated(config.mlp),
        # transformers 5 reads this key, transformers 4 reads tie_word_embeddings.
        "scale_decoder_outputs": config.tie_embeddings,
    }


def _read_t5(settings: Settings) -> ModelConfig:
    return _read_common(settings, mlp=_mlp_of(settings), tied=_scales(settings))


def _read_mt5(settings: Settings) -> ModelConfig:
    # transformers never scales the output of mT5; published models have an untied head.
    return _read_common(settings, mlp=_mlp_of(settings), tied=False)


def _read_umt5(settings: Settings) -> ModelConfig:
    return _read_common(settings, mlp=_mlp_of(settings), tied=_scales(settings), per_layer=True)


def _mlp_of(settings: Settings) -> Activation:
    """The activation; `dense_act_fn` and `is_gated_act` override `feed_forward_proj`, as in transformers."""
    proj = number(settings, "feed_forward_proj")
    gated, key = settings.get("is_gated_act"), "dense_act_fn"
    gated = proj.startswith("gated-") if gated is None else bool(gated)
    if settings.get(key) is None:
        # For "gated-gelu" transformers uses the tanh approximation of GELU, for "gelu" the exact GELU.
        settings = {"feed_forward_proj": "gelu_new" if proj == "gated-gelu" else proj.removeprefix("gated-")}
        key = "feed_forward_proj"
    if gated:
        return activation(settings, key, {TANH_GELU: "geglu", SILU: "swiglu"})
    return activation(settings, key, {("relu",): "relu", TANH_GELU: "gelu"})


def _scales(settings: Settings) -> bool:
    """Whether the decoder's output is scaled, as ours is with tied embeddings.

    transformers 5 writes `tie_word_embeddings: true` for every T5 and has a separate key for the scale.
    """
    scales = settings.get("scale_decoder_outputs")
    return settings.get("tie_word_embeddings") is not False if scales is None else bool(scales)


def _write_switch(config: ModelConfig) -> dict[str, Any]:
    assert isinstance(config, T5Config) and config.moe is not None
    moe = config.moe
    check_writable(
        {
            "mlp": (config.mlp == "relu", config.mlp, "must be relu: transformers' Switch has no gated MLP"),
            "relative_bias_per_layer": (
                not config.relative_bias_per_layer,
                True,
                "must be false: Switch has one table for each stack",
            ),
            "moe.top_k": (moe.top_k == 1, moe.top_k, "must be 1, as in Switch"),
            "moe.score": (moe.score == "softmax", moe.score, "must be softmax, as in Switch"),
            "moe.normalize": (not moe.normalizes, True, "must be false, as in Switch"),
            "moe.bias_rate": (moe.bias_rate == 0, moe.bias_rate, "must be 0: Switch has no selection bias"),
            "moe.shared_d_ff": (moe.shared_d_ff == 0, moe.shared_d_ff, "must be 0: Switch has no such MLP"),
            "moe.d_ff": (
                moe.d_ff in (None, config.d_ff),
                moe.d_ff,
                f"must be the dense MLP's {config.d_ff} in Switch",
            ),
        },
    )
    settings = _write_common(config) | {
        "dense_act_fn": "relu",
        "num_experts": moe.num_experts,
        "expert_capacity": _NO_LIMIT,
        "router_bias": False,
        "router_dtype": "float32",
        "router_jitter_noise": moe.jitter,
        "router_aux_loss_coef": published(moe.balance_coefficient, switch_factor(config)),
        "router_z_loss_coef": published(moe.z_coefficient, switch_factor(config)),
        "num_sparse_encoder_layers": config.encoder.num_sparse,
        "num_sparse_decoder_layers": config.decoder.num_sparse,
    }
    for name, shape in (("encoder", config.encoder), ("decoder", config.decoder)):
        mine = [layer for layer in range(shape.num_layers) if shape.sparse(layer)]
        if mine != _sparse_layers(settings, name, shape.num_layers):
            check_writable(
        {"moe.every": (False, f"{moe.every} over {shape.num_layers} layers of the {name}",
                               "must be 1 or 2 and divide the number of layers, as in transformers' Switch")},
            )  # fmt: skip
    return settings


def _sparse_layers(settings: Settings, stack: str, num_layers: int) -> list[int]:
    """Indices of the layers that transformers makes sparse: the second of every `step` layers, or all."""
    given = number(settings, f"num_sparse_{stack}_layers", 3)
    step = settings.get(f"{stack}_sparse_step") or (num_layers // given if given > 0 else num_layers)
    return [layer for layer in range(num_layers) if step == 1 or (step > 0 and layer % step == 1)]


def _read_switch(settings: Settings) -> ModelConfig:
    layers = {"encoder": number(settings, "num_layers")}
    layers["decoder"] = number(settings, "num_decoder_layers", layers["encoder"])
    theirs = {name: _sparse_layers(settings, name, count) for name, count in layers.items()}
    for every in range(1, min(layers.values()) + 1):
        moe = MoEConfig(
            num_experts=number(settings, "num_experts"),
            top_k=1,
            every=every,
            jitter=number(settings, "router_jitter_noise", 0.01),
        )
        tied = settings.get("tie_word_embeddings") is not False
        config = _read_common(settings, mlp="relu", tied=tied, moe=moe)
        shapes = {"encoder": config.encoder, "decoder": config.decoder}
        if all(theirs[n] == [i for i in range(layers[n]) if shapes[n].sparse(i)] for n in shapes):
            names = {"balance_coefficient": "router_aux_loss_coef", "z_coefficient": "router_z_loss_coef"}
            ours = {key: number(settings, name, 0.001) / switch_factor(config) for key, name in names.items()}
            return config.model_copy(update={"moe": MoEConfig.model_validate(moe.model_dump() | ours)})
    raise HubError(
        "num_sparse_encoder_layers in config.json",
        got=f"sparse layers {theirs['encoder']} of the encoder and {theirs['decoder']} of the decoder",
        rule="must be the last of every N layers, with the same N in both",
        remedy="reptrain does not support this model.",
    )


_COMMON: dict[str, Any] = {
    "vocab_size": REQUIRED,
    "d_model": REQUIRED,
    "num_layers": REQUIRED,
    "num_heads": REQUIRED,
    "d_ff": REQUIRED,
    "d_kv": REQUIRED,
    "num_decoder_layers": None,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "is_encoder_decoder": True,
    "tie_word_embeddings": None,
}
_ACTIVATION = {"dense_act_fn": None, "is_gated_act": None, "scale_decoder_outputs": None}
_FIXED = {"is_decoder": False, "add_cross_attention": False}
# Dropout, initialization, classification heads, and length of training texts.
_FREE = frozenset(("dropout_rate", "classifier_dropout", "initializer_factor", "n_positions"))
_ALIASES = {"hidden_size": "d_model", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
_T5_ALIASES = _ALIASES | {"head_dim": "d_kv"}


def _ties(settings: Settings) -> bool:
    return settings.get("tie_word_embeddings") is not False


T5 = Architecture(
    model_type="t5",
    class_name="T5ForConditionalGeneration",
    fits=lambda config: (
        isinstance(config, T5Config) and config.moe is None and not config.relative_bias_per_layer
    ),
    write=_write_t5,
    read=_read_t5,
    parts=_parts,
    keys=Keys(
        read=_COMMON | _ACTIVATION | {"feed_forward_proj": "relu"},
        fixed=_FIXED,
        free=_FREE,
        aliases=_T5_ALIASES,
    ),
    embedding="shared.weight",
    copies=_COPIES,
    ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
    repeats_embedding=_ties,
)
MT5 = replace(
    T5,
    model_type="mt5",
    class_name="MT5ForConditionalGeneration",
    # It is written as a T5, which is the same model.
    fits=lambda config: False,
    read=_read_mt5,
    keys=replace(T5.keys, read={**T5.keys.read, "feed_forward_proj": "gated-gelu"}),
    # A missing head is tied to the embedding, whatever tie_word_embeddings is.
    repeats_embedding=lambda settings: True,
)
UMT5 = replace(
    T5,
    model_type="umt5",
    class_name="UMT5ForConditionalGeneration",
    fits=lambda config: (
        isinstance(config, T5Config) and config.moe is None and config.relative_bias_per_layer
    ),
    read=_read_umt5,
    keys=replace(
        T5.keys,
        read={**T5.keys.read, "feed_forward_proj": "gated-gelu"},
        # From the trainer of the published models; transformers does not read it.
        free=_FREE | {"scalable_attention"},
    ),
)
SWITCH = Architecture(
    model_type="switch_transformers",
    class_name="SwitchTransformersForConditionalGeneration",
    fits=lambda config: isinstance(config, T5Config) and config.moe is not None,
    write=_write_switch,
    read=_read_switch,
    parts=_parts,
    keys=Keys(
        read=_COMMON
        | {
            "num_decoder_layers": 12,
            "tie_word_embeddings": True,
            "num_experts": REQUIRED,
            "num_sparse_encoder_layers": 3,
            "num_sparse_decoder_layers": 3,
            "encoder_sparse_step": None,
            "decoder_sparse_step": None,
            "router_aux_loss_coef": 0.001,
            "router_z_loss_coef": 0.001,
            "router_jitter_noise": 0.01,
        },
        fixed=_FIXED
        | {
            "dense_act_fn": "relu",
            "router_bias": False,
            "router_dtype": "float32",
            # From the library of the published models; in transformers these values are built in.
            "feed_forward_proj": "relu",
            "is_gated_act": False,
            "num_selected_experts": 1,
            "router_type": "tokens_masked",
            "batch_prioritized_routing": False,
        },
        # In transformers a capacity drops tokens of long sequences; we drop none in evaluation.
        free=_FREE | {"expert_capacity", "router_ignore_padding_tokens", "add_router_probs"},
        aliases=_ALIASES,
    ),
    embedding="shared.weight",
    copies=_COPIES,
)
