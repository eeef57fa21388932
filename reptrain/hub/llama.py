"""transformers' Llama, Mistral, Qwen2 and Mixtral."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, TypeGuard

from reptrain.config.model import Activation, DecoderConfig, ModelConfig, MoEConfig
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
from reptrain.hub.rope import read_rope, write_rope
from reptrain.hub.router_losses import mixtral_factor, published

_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_EXPERT = {"gate": "w1", "down": "w2", "up": "w3"}


_ACTIVATIONS: dict[tuple[str, ...], Activation] = {SILU: "swiglu", TANH_GELU: "geglu"}


def _parts(config: ModelConfig, *, fused: bool = False) -> Iterator[Part]:
    """The tensors of a model of all four architectures.

    Args:
        config: The model.
        fused: Whether all experts of a layer are in one tensor, as in Mixtral of transformers 5.
    """
    assert isinstance(config, DecoderConfig)
    yield Part("model.embed_tokens.weight", ("embedding.weight",))
    for layer in range(config.num_layers):
        # A layer with shared weights gets a copy of them.
        ours, theirs = f"blocks.{layer % config.stack.stored}", f"model.layers.{layer}"
        yield Part(f"{theirs}.input_layernorm.weight", (f"{ours}.attention_norm.weight",))
        for mine, its in _ATTENTION.items():
            for kind in _kinds(_has_bias(config, mine)):
                yield Part(f"{theirs}.self_attn.{its}.{kind}", (f"{ours}.attention.{mine}.{kind}",))
        yield Part(f"{theirs}.post_attention_layernorm.weight", (f"{ours}.mlp_norm.weight",))
        sparse = config.stack.sparse(layer)
        if sparse is None:
            for mine, its in _MLP.items():
                for kind in _kinds(config.has_mlp_bias):
                    yield Part(f"{theirs}.mlp.{its}.{kind}", (f"{ours}.mlp.{mine}.{kind}",))
            continue
        if fused:
            experts = f"{ours}.mlp.experts"
            yield Part(f"{theirs}.mlp.gate.weight", (f"{ours}.mlp.router.weight",))
            both = (f"{experts}.gate", f"{experts}.up")
            yield Part(f"{theirs}.mlp.experts.gate_up_proj", both, dim=1)
            yield Part(f"{theirs}.mlp.experts.down_proj", (f"{experts}.down",))
            continue
        yield Part(f"{theirs}.block_sparse_moe.gate.weight", (f"{ours}.mlp.router.weight",))
        for expert in range(sparse.num_experts):
            for mine, its in _EXPERT.items():
                name = f"{theirs}.block_sparse_moe.experts.{expert}.{its}.weight"
                yield Part(name, (f"{ours}.mlp.experts.{mine}",), expert)
    yield Part("model.norm.weight", ("norm.weight",))
    if not config.tie_embeddings:
        yield Part("lm_head.weight", ("head.weight",))


def _kinds(has_bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if has_bias else ("weight",)


def _has_bias(config: DecoderConfig, projection: str) -> bool:
    return config.attention_biases == "all" or (config.attention_biases == "qkv" and projection != "output")


def _write_common(
    config: DecoderConfig, d_ff: int, *, name: str, biases: tuple[str, ...], has_window: bool
) -> dict[str, Any]:
    """The settings that all four architectures have.

    Args:
        config: The model.
        d_ff: Hidden units of the MLP, or of an expert.
        name: Name of the architecture, for messages.
        biases: Values of `attention_biases` that it supports.
        has_window: Whether it supports a sliding window.
    """
    check_writable(
        {
            "parallel_block": (not config.parallel_block, True, f"must be false, as in {name}"),
            "positions": (config.positions == "rope", config.positions, f"must be rope, as in {name}"),
            "norm": (config.norm == "rmsnorm", config.norm, f"must be rmsnorm, as in {name}"),
            "mlp": (
                config.mlp in ("swiglu", "geglu"),
                config.mlp,
                f"must be swiglu or geglu, as in {name}",
            ),
            "attention_bias": (
                config.attention_biases in biases,
                config.attention_biases,
                f"must be {' or '.join(biases)}, as in {name}",
            ),
            "mlp_bias": (
                not config.has_mlp_bias or name == "Llama",
                config.has_mlp_bias,
                f"must be false, as in {name}",
            ),
            "sliding_window": (
                has_window or config.sliding_window is None,
                config.sliding_window,
                f"must be null: {name} has no sliding window",
            ),
            "mup_base_width": (
                config.mup_ratio == 1,
                config.mup_base_width,
                f"must be null: {name} scales no logits",
            ),
        }
    )
    return {
        "hidden_size": config.d_model,
        "intermediate_size": d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu" if config.mlp == "swiglu" else "gelu_pytorch_tanh",
        "rms_norm_eps": config.norm_eps,
        "attention_dropout": config.dropout.attention.value,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
        **write_rope(config),
    }


def _read_common(
    settings: Settings, moe: MoEConfig | None = None, *, theta: float = 1e4, **more: Any
) -> DecoderConfig:
    """Convert settings to our configuration.

    Args:
        settings: The completed config.json.
        moe: The sparse layers.
        theta: Default base of RoPE.
        more: Settings of our model that only some of these architectures have.
    """
    heads, width = number(settings, "num_attention_heads"), number(settings, "hidden_size")
    head_dim = settings.get("head_dim")
    return DecoderConfig.model_validate(
        {
            "d_model": width,
            "num_layers": number(settings, "num_hidden_layers"),
            "num_heads": heads,
            "num_kv_heads": number(settings, "num_key_value_heads", heads),
            "head_dim": None if head_dim is None or head_dim * heads == width else head_dim,
            "d_ff": number(settings, "intermediate_size"),
            "mlp": activation(settings, "hidden_act", _ACTIVATIONS),
            "vocab_size": number(settings, "vocab_size"),
            "tie_embeddings": bool(settings.get("tie_word_embeddings", False)),
            "norm_eps": number(settings, "rms_norm_eps"),
            "init_std": number(settings, "initializer_range", 0.02),
            "moe": moe,
            **read_rope(settings, theta=theta),
            **more,
        }
    )


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    assert isinstance(config, DecoderConfig)
    settings = _write_common(config, config.d_ff, name="Llama", biases=("none", "all"), has_window=False)
    return settings | {
        "attention_bias": config.attention_biases == "all",
        "mlp_bias": config.has_mlp_bias,
    }


def _read_llama(settings: Settings) -> ModelConfig:
    # Null, not "none", keeps the config of models without biases as it was before these settings existed.
    return _read_common(
        settings,
        attention_bias="all" if settings.get("attention_bias") else None,
        mlp_bias=True if settings.get("mlp_bias") else None,
    )


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    assert isinstance(config, DecoderConfig)
    settings = _write_common(config, config.d_ff, name="Mistral", biases=("none",), has_window=True)
    return settings | {"sliding_window": config.sliding_window}


def _read_mistral(settings: Settings) -> ModelConfig:
    return _read_common(settings, sliding_window=settings.get("sliding_window"))


def _write_qwen2(config: ModelConfig) -> dict[str, Any]:
    assert isinstance(config, DecoderConfig)
    settings = _write_common(config, config.d_ff, name="Qwen2", biases=("qkv",), has_window=True)
    kind = "full_attention" if config.sliding_window is None else "sliding_attention"
    return settings | {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "max_window_layers": 0 if config.sliding_window else config.num_layers,
        "layer_types": [kind] * config.num_layers,
    }


def _read_qwen2(settings: Settings) -> ModelConfig:
    return _read_common(settings, attention_bias="qkv", sliding_window=_window_of_qwen2(settings))


def _window_of_qwen2(settings: Settings) -> int | None:
    """The sliding window of all layers; None if no layer has one."""
    window = settings.get("sliding_window") if settings.get("use_sliding_window") else None
    layers = number(settings, "num_hidden_layers")
    kinds = settings.get("layer_types")
    if kinds is None:
        first: Any = settings.get("max_window_layers")
        kinds = [
            "full_attention" if window is None or i < first else "sliding_attention" for i in range(layers)
        ]
    sliding = [kind == "sliding_attention" for kind in kinds]
    if set(kinds) - {"full_attention", "sliding_attention"} or len(set(sliding)) > 1:
        raise HubError(
            "layer_types in config.json"
            if settings.get("layer_types")
            else "max_window_layers in config.json",
            got=f"{sum(sliding)} of {layers} layers with a sliding window",
            rule="must give all layers a sliding window or none",
            remedy="reptrain supports one attention window for all layers only.",
        )
    return window if all(sliding) else None


def _write_mixtral(config: ModelConfig) -> dict[str, Any]:
    assert isinstance(config, DecoderConfig) and config.moe is not None
    moe = config.moe
    check_writable(
        {
            "moe.every": (moe.every == 1, moe.every, "must be 1: every layer of Mixtral is sparse"),
            "moe.score": (moe.score == "softmax", moe.score, "must be softmax, as in Mixtral"),
            "moe.normalize": (moe.normalizes, False, "must be true, as in Mixtral"),
            "moe.bias_rate": (moe.bias_rate == 0, moe.bias_rate, "must be 0: Mixtral has no selection bias"),
            "moe.shared_d_ff": (moe.shared_d_ff == 0, moe.shared_d_ff, "must be 0: Mixtral has no such MLP"),
        },
    )
    settings = _write_common(
        config, moe.d_ff or config.d_ff, name="Mixtral", biases=("none",), has_window=True
    )
    return settings | {
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": published(moe.balance_coefficient, mixtral_factor(config)),
        "router_jitter_noise": moe.jitter,
        "sliding_window": config.sliding_window,
    }


def _read_mixtral(settings: Settings) -> ModelConfig:
    moe = MoEConfig(
        num_experts=number(settings, "num_local_experts"),
        top_k=number(settings, "num_experts_per_tok", 2),
        normalize=True,
        z_coefficient=0.0,
        jitter=number(settings, "router_jitter_noise", 0.0),
    )
    config = _read_common(settings, moe, theta=1e6, sliding_window=settings.get("sliding_window"))
    balance = number(settings, "router_aux_loss_coef", 0.001)
    ours = {"balance_coefficient": balance / mixtral_factor(config)}
    return config.model_copy(update={"moe": MoEConfig.model_validate(moe.model_dump() | ours)})


_IGNORED = ("rotary_emb.inv_freq",)
_COMMON: dict[str, Any] = {
    "vocab_size": REQUIRED,
    "hidden_size": REQUIRED,
    "intermediate_size": REQUIRED,
    "num_hidden_layers": REQUIRED,
    "num_attention_heads": REQUIRED,
    "head_dim": None,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": None,
    "partial_rotary_factor": None,
    "original_max_position_embeddings": None,
}
_FIXED = {"is_encoder_decoder": False}
# Dropout, length of training texts, and sliced computation of the same product.
_FREE = frozenset(
    ("attention_dropout", "max_position_embeddings", "pretraining_tp", "is_decoder", "is_llama_config")
)


def _is_dense(config: ModelConfig) -> TypeGuard[DecoderConfig]:
    return isinstance(config, DecoderConfig) and config.moe is None


LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    fits=_is_dense,
    write=_write_llama,
    read=_read_llama,
    parts=_parts,
    keys=Keys(
        read=_COMMON | {"num_key_value_heads": None, "attention_bias": False, "mlp_bias": False},
        fixed=_FIXED,
        free=_FREE,
    ),
    embedding="model.embed_tokens.weight",
    prefix="model.",
    ignored=_IGNORED,
)
MISTRAL = Architecture(
    model_type="mistral",
    class_name="MistralForCausalLM",
    fits=lambda config: _is_dense(config) and config.sliding_window is not None,
    write=_write_mistral,
    read=_read_mistral,
    parts=_parts,
    keys=Keys(read=_COMMON | {"num_key_value_heads": 8, "sliding_window": 4096}, fixed=_FIXED, free=_FREE),
    embedding="model.embed_tokens.weight",
    prefix="model.",
    ignored=_IGNORED,
)
QWEN2 = Architecture(
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    fits=lambda config: _is_dense(config) and config.attention_biases == "qkv",
    write=_write_qwen2,
    read=_read_qwen2,
    parts=_parts,
    keys=Keys(
        read=_COMMON
        | {
            "num_key_value_heads": 32,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "layer_types": None,
        },
        fixed=_FIXED,
        free=_FREE,
    ),
    embedding="model.embed_tokens.weight",
    prefix="model.",
    ignored=_IGNORED,
)
MIXTRAL = Architecture(
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    fits=lambda config: isinstance(config, DecoderConfig) and config.moe is not None,
    write=_write_mixtral,
    read=_read_mixtral,
    parts=_parts,
    other_parts=partial(_parts, fused=True),
    keys=Keys(
        read=_COMMON
        | {
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "sliding_window": None,
            "num_local_experts": REQUIRED,
            "num_experts_per_tok": 2,
            "router_aux_loss_coef": 0.001,
            "router_jitter_noise": 0.0,
        },
        fixed=_FIXED,
        free=_FREE | {"output_router_logits"},
        aliases={"num_experts": "num_local_experts"},
    ),
    embedding="model.embed_tokens.weight",
    prefix="model.",
    ignored=_IGNORED,
)
