"""transformers' GPT-2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reptrain.config.model import DecoderConfig, ModelConfig
from reptrain.hub.architecture import TANH_GELU, Architecture, Settings, activation, check_writable, number
from reptrain.hub.keys import REQUIRED, Keys
from reptrain.hub.parts import Part

_NORMS = {"ln_1": "attention_norm", "ln_2": "mlp_norm"}
# GPT-2's projections have the shape (input, output); queries, keys and values are in one tensor.
_PROJECTIONS = {
    "attn.c_attn": ("attention.query", "attention.key", "attention.value"),
    "attn.c_proj": ("attention.output",),
    "mlp.c_fc": ("mlp.up",),
    "mlp.c_proj": ("mlp.down",),
}


def _parts(config: ModelConfig) -> Iterator[Part]:
    assert isinstance(config, DecoderConfig)
    yield Part("transformer.wte.weight", ("embedding.weight",))
    yield Part("transformer.wpe.weight", ("position_embedding.weight",))
    for layer in range(config.num_layers):
        # A layer with shared weights gets a copy of them.
        ours, theirs = f"blocks.{layer % config.stack.stored}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            for its, mine in _NORMS.items():
                yield Part(f"{theirs}.{its}.{kind}", (f"{ours}.{mine}.{kind}",))
            for its, several in _PROJECTIONS.items():
                held = tuple(f"{ours}.{mine}.{kind}" for mine in several)
                yield Part(f"{theirs}.{its}.{kind}", held, transposed=kind == "weight")
    for kind in ("weight", "bias"):
        yield Part(f"transformer.ln_f.{kind}", (f"norm.{kind}",))
    if not config.tie_embeddings:
        yield Part("lm_head.weight", ("head.weight",))


def _write(config: ModelConfig) -> dict[str, Any]:
    assert isinstance(config, DecoderConfig)
    check_writable(
        {
            "parallel_block": (not config.parallel_block, True, "must be false, as in GPT-2"),
            "norm": (config.norm == "layernorm", config.norm, "must be layernorm, as in GPT-2"),
            "mlp": (config.mlp == "gelu", config.mlp, "must be gelu, as in GPT-2"),
            "bias": (config.bias, config.bias, "must be true, as in GPT-2"),
            "attention_bias": (
                config.attention_biases == "all",
                config.attention_bias,
                "must be all or null, as in GPT-2",
            ),
            "mlp_bias": (config.has_mlp_bias, config.mlp_bias, "must be true or null, as in GPT-2"),
            "head_dim": (
                config.head_width * config.num_heads == config.d_model,
                config.head_dim,
                "must be d_model / num_heads, as in GPT-2",
            ),
            "sliding_window": (
                config.sliding_window is None,
                config.sliding_window,
                "must be null: GPT-2 has no sliding window",
            ),
            "moe": (config.moe is None, "sparse layers", "must be null: GPT-2 has none"),
            "mup_base_width": (
                config.mup_ratio == 1,
                config.mup_base_width,
                "must be null: GPT-2 scales no logits",
            ),
            "num_kv_heads": (
                config.kv_heads == config.num_heads,
                config.kv_heads,
                f"must be num_heads {config.num_heads}: GPT-2 has no grouped queries",
            ),
        }
    )
    rates = config.dropout
    return {
        "n_embd": config.d_model,
        "n_inner": config.d_ff,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_positions,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
        "embd_pdrop": rates.embedding.value,
        "attn_pdrop": rates.attention.value,
        "resid_pdrop": rates.residual.value,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _read(settings: Settings) -> ModelConfig:
    width = number(settings, "n_embd")
    return DecoderConfig.model_validate(
        {
            "d_model": width,
            "num_layers": number(settings, "n_layer"),
            "num_heads": number(settings, "n_head"),
            "d_ff": number(settings, "n_inner", 4 * width),
            "mlp": activation(settings, "activation_function", {TANH_GELU: "gelu"}),
            "norm": "layernorm",
            "positions": "learned",
            "max_positions": number(settings, "n_positions"),
            "bias": True,
            "vocab_size": number(settings, "vocab_size"),
            "tie_embeddings": settings.get("tie_word_embeddings") is not False,
            "norm_eps": number(settings, "layer_norm_epsilon", 1e-5),
            "init_std": number(settings, "initializer_range", 0.02),
        }
    )


_KEYS = Keys(
    read={
        "vocab_size": REQUIRED,
        "n_positions": REQUIRED,
        "n_embd": REQUIRED,
        "n_layer": REQUIRED,
        "n_head": REQUIRED,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
    },
    fixed={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "is_encoder_decoder": False,
    },
    # Dropout, classification heads, precision, and an older name of n_positions.
    free=frozenset(
        (
            "attn_pdrop",
            "embd_pdrop",
            "resid_pdrop",
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_first_dropout",
            "predict_special_tokens",
            "reorder_and_upcast_attn",
            "n_ctx",
            "classifier_dropout",
            "hidden_dropout",
            "summary_last_dropout",
            "is_decoder",
        )
    ),
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
)

GPT2 = Architecture(
    keys=_KEYS,
    prefix="transformer.",
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    fits=lambda config: isinstance(config, DecoderConfig) and config.positions == "learned",
    write=_write,
    read=_read,
    parts=_parts,
    embedding="transformer.wte.weight",
    # Attention masks in old folders.
    ignored=(".attn.bias", ".attn.masked_bias"),
)
