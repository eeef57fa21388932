"""Which settings of a model may change when another run starts from its weights (`init_from`)."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from reptrain.config.fingerprint import auto_values_of_model, flatten
from reptrain.config.model import DecoderConfig, ModelConfig, T5Config

# All others are built into the weights.
_MAY_DIFFER = (
    "init_std", "init_scale", "rope_theta", "rope_scaling", "rope_scaling.*", "sliding_window", "norm_eps",
    "dropout.*", "moe.capacity_factor", "moe.eval_capacity_factor", "moe.min_capacity", "moe.*_coefficient",
    "moe.jitter", "moe.bias_rate", "moe.group_windows", "moe.backend",
)  # fmt: skip


def differing_settings(parent: ModelConfig, model: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Settings in which a model differs from its parent, by dotted key: (the parent's value, the model's).

    `vocab_size` is left out: null means the tokenizer's size, so tokenizers are compared separately.
    """
    there, here = model_settings(parent), model_settings(model)
    # A key that only one of them has counts as null in the other.
    given = dict(flatten(model.model_dump(mode="json")))
    # Keys that are set come before keys that are derived from them.
    keys = sorted(
        (there.keys() | here.keys()) - {"vocab_size"}, key=lambda key: (given.get(key) is None, key)
    )
    return {key: (there.get(key), here.get(key)) for key in keys if there.get(key) != here.get(key)}


def fixed_difference(parent: ModelConfig, model: ModelConfig) -> tuple[str, Any, Any] | None:
    """The first setting that differs and must not: its dotted key, the parent's value, the model's value."""
    if isinstance(parent, DecoderConfig) and isinstance(model, T5Config):
        return unadaptable(parent) or _adaptation_difference(parent, model)
    if parent.family != model.family:
        return "family", parent.family, model.family
    for key, (there, here) in differing_settings(parent, model).items():
        if not any(fnmatchcase(key, pattern) for pattern in _MAY_DIFFER):
            return key, there, here
    return None


def model_settings(model: ModelConfig) -> dict[str, Any]:
    """A model's settings by dotted key, with derived defaults filled in for null."""
    return dict(flatten(model.model_dump(mode="json"))) | auto_values_of_model(model)


def unadaptable(parent: DecoderConfig) -> tuple[str, Any, Any] | None:
    """A part of a decoder that an encoder-decoder does not have, so that it cannot take the weights: the
    dotted key, its value, and the value that it must have. None if there is none."""
    parts = {
        "norm": (parent.norm, "rmsnorm"),
        "attention_bias": (parent.attention_biases, "none"),
        "mlp_bias": (parent.has_mlp_bias, False),
        "parallel_block": (parent.parallel_block, False),
        "mup_base_width": (parent.mup_base_width, None),
    }
    return next(((key, there, needed) for key, (there, needed) in parts.items() if there != needed), None)


def _adaptation_difference(parent: DecoderConfig, model: T5Config) -> tuple[str, Any, Any] | None:
    """The first setting of an encoder-decoder that differs from the decoder whose weights it takes."""
    stack = parent.stack
    pairs = {
        "d_model": (parent.d_model, model.d_model),
        "num_heads": (parent.num_heads, model.num_heads),
        "head_dim": (parent.head_width, model.head_dim),
        "d_ff": (parent.d_ff, model.d_ff),
        "mlp": (parent.mlp, model.mlp),
        "tie_embeddings": (parent.tie_embeddings, model.tie_embeddings),
        "num_encoder_layers": (stack.num_layers, model.num_encoder_layers),
        "num_decoder_layers": (stack.num_layers, model.num_decoder_layers),
        "num_stored_encoder_layers": (stack.stored, model.encoder.stored),
        "num_stored_decoder_layers": (stack.stored, model.decoder.stored),
        "moe": (parent.moe, model.moe),
    }
    return next(((key, there, here) for key, (there, here) in pairs.items() if there != here), None)
