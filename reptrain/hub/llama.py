"""Llama and Mixtral, as transformers has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reptrain.config.model import DecoderConfig, ModelConfig, MoEConfig
from reptrain.errors import HubError
from reptrain.hub.architecture import Architecture, Settings, check_readable, check_writable, number
from reptrain.hub.parts import Part
from reptrain.hub.router_losses import mixtral_factor, published

_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_EXPERT = {"gate": "w1", "down": "w2", "up": "w3"}


def _parts(config: ModelConfig) -> Iterator[Part]:
    assert isinstance(config, DecoderConfig)
    yield Part("model.embed_tokens.weight", ("embedding.weight",))
    for layer in range(config.num_layers):
        # A layer that runs with another's weights gets a copy of them.
        ours, theirs = f"blocks.{layer % config.stack.stored}", f"model.layers.{layer}"
        yield Part(f"{theirs}.input_layernorm.weight", (f"{ours}.attention_norm.weight",))
        for mine, its in _ATTENTION.items():
            yield Part(f"{theirs}.self_attn.{its}.weight", (f"{ours}.attention.{mine}.weight",))
        yield Part(f"{theirs}.post_attention_layernorm.weight", (f"{ours}.mlp_norm.weight",))
        sparse = config.stack.sparse(layer)
        if sparse is None:
            for mine, its in _MLP.items():
                yield Part(f"{theirs}.mlp.{its}.weight", (f"{ours}.mlp.{mine}.weight",))
            continue
        yield Part(f"{theirs}.block_sparse_moe.gate.weight", (f"{ours}.mlp.router.weight",))
        for expert in range(sparse.num_experts):
            for mine, its in _EXPERT.items():
                name = f"{theirs}.block_sparse_moe.experts.{expert}.{its}.weight"
                yield Part(name, (f"{ours}.mlp.experts.{mine}",), expert)
    yield Part("model.norm.weight", ("norm.weight",))
    if not config.tie_embeddings:
        yield Part("lm_head.weight", ("head.weight",))


def _write_common(config: DecoderConfig, d_ff: int) -> dict[str, Any]:
    check_writable(
        {
            "norm": (config.norm == "rmsnorm", config.norm, "must be rmsnorm, as in Llama and Mixtral"),
            "mlp": (config.mlp == "swiglu", config.mlp, "must be swiglu, as in Llama and Mixtral"),
            "bias": (not config.bias, config.bias, "must be false, as in Llama and Mixtral"),
            "mup_base_width": (
                config.mup_ratio == 1,
                config.mup_base_width,
                "must be null: Llama and Mixtral scale no logits",
            ),
        }
    )
    return {
        "hidden_size": config.d_model,
        "intermediate_size": d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        # Transformers 4 reads the first, 5 the second.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_dropout": config.dropout.attention.value,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _read_common(settings: Settings, moe: MoEConfig | None) -> DecoderConfig:
    check_readable(
        settings,
        {
            "hidden_act": ("silu", None),
            "attention_bias": (False, None),
            "mlp_bias": (False, None),
            "sliding_window": (None,),
        },
    )
    heads, width = number(settings, "num_attention_heads"), number(settings, "hidden_size")
    check_readable(settings, {"head_dim": (width // heads, None)})
    return DecoderConfig.model_validate(
        {
            "d_model": width,
            "num_layers": number(settings, "num_hidden_layers"),
            "num_heads": heads,
            "num_kv_heads": number(settings, "num_key_value_heads", heads),
            "d_ff": number(settings, "intermediate_size"),
            "vocab_size": number(settings, "vocab_size"),
            "tie_embeddings": bool(settings.get("tie_word_embeddings", False)),
            "rope_theta": _rope_theta(settings),
            "norm_eps": number(settings, "rms_norm_eps", 1e-6),
            "init_std": number(settings, "initializer_range", 0.02),
            "moe": moe,
        }
    )


def _rope_theta(settings: Settings) -> float:
    # Transformers 4 has `rope_scaling` and `rope_theta`, 5 has both in `rope_parameters`.
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise HubError(
            "rope_parameters in config.json",
            got=f"rope_type {kind}",
            rule="must be default",
            remedy="reptrain has no such model.",
        )
    # Files from before the key existed mean 10,000, but for Mixtral.
    default = 1e6 if settings.get("model_type") == "mixtral" else 1e4
    theta = rope.get("rope_theta") or number(settings, "rope_theta", default)
    # Not float(): of a text, that is no error of the model's settings.
    return 1.0 * theta


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    assert isinstance(config, DecoderConfig)
    return _write_common(config, config.d_ff) | {"attention_bias": False, "mlp_bias": False}


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
    return _write_common(config, moe.d_ff or config.d_ff) | {
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": published(moe.balance_coefficient, mixtral_factor(config)),
        "router_jitter_noise": moe.jitter,
        "sliding_window": None,
    }


def _read_mixtral(settings: Settings) -> ModelConfig:
    moe = MoEConfig(
        num_experts=number(settings, "num_local_experts"),
        top_k=number(settings, "num_experts_per_tok", 2),
        normalize=True,
        z_coefficient=0.0,
        jitter=number(settings, "router_jitter_noise", 0.0),
    )
    config = _read_common(settings, moe)
    balance = number(settings, "router_aux_loss_coef", 0.001)
    ours = {"balance_coefficient": balance / mixtral_factor(config)}
    return config.model_copy(update={"moe": MoEConfig.model_validate(moe.model_dump() | ours)})


_IGNORED = ("rotary_emb.inv_freq",)

LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    fits=lambda config: isinstance(config, DecoderConfig) and config.moe is None,
    write=_write_llama,
    read=lambda settings: _read_common(settings, None),
    parts=_parts,
    embedding="model.embed_tokens.weight",
    ignored=_IGNORED,
)
MIXTRAL = Architecture(
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    fits=lambda config: isinstance(config, DecoderConfig) and config.moe is not None,
    write=_write_mixtral,
    read=_read_mixtral,
    parts=_parts,
    embedding="model.embed_tokens.weight",
    ignored=_IGNORED,
)
