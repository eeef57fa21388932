"""Keys of config.json: our tables match transformers' config classes, and unsupported values are refused."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed: no tables")

import transformers
from their_models import LLAMA, make, save
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from reptrain.errors import HubError
from reptrain.hub import ModelFolder
from reptrain.hub.architecture import Architecture
from reptrain.hub.folder import ARCHITECTURES
from reptrain.hub.keys import REQUIRED
from reptrain.sizes import count_parameters

KINDS = {architecture.model_type: architecture for architecture in ARCHITECTURES}
MADE = {"t5": "t5-1.1", "switch_transformers": "switch"}
# Methods, and what the library sets for itself.
_NOT_KEYS = {"get_text_config", "to_dict", "is_causal", "pretraining_tp", "use_return_dict"}


def defaults_of(model_type: str) -> dict[str, Any]:
    """transformers' defaults for missing keys."""
    found = {}
    for field in fields(CONFIG_MAPPING[model_type]):
        factory = field.default_factory
        found[field.name] = field.default if factory is MISSING else factory()
    return found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Architecture:
    return KINDS[request.param]


def test_tables_have_the_defaults_of_transformers(kind: Architecture) -> None:
    theirs, keys = defaults_of(kind.model_type), kind.keys
    unknown = sorted(name for name in theirs if not keys.has(name) and name not in keys.aliases)
    assert not unknown
    ours = {**keys.read, **keys.fixed}
    # Of T5 transformers takes tie_word_embeddings apart before it is a field.
    differing = {
        name: (ours[name], value)
        for name, value in theirs.items()
        if name in ours and ours[name] is not REQUIRED and ours[name] != value
    }
    assert {name for name in differing if name != "tie_word_embeddings"} == set()
    assert "tie_word_embeddings" not in differing or "t5" in kind.model_type
    assert kind.keys.aliases == CONFIG_MAPPING[kind.model_type].attribute_map or kind.model_type == "mt5"


def test_tables_have_every_key_that_the_modeling_code_reads(kind: Architecture) -> None:
    """A config attribute that is not a field of the class may still change the model."""
    config = CONFIG_MAPPING[kind.model_type]
    module = inspect.getmodule(transformers.AutoModel._model_mapping[config])
    assert module is not None
    source = inspect.getsource(module)
    read = set(re.findall(r"\bconfig\.([a-z]\w*)\b(?!\()", source))
    read |= set(re.findall(r"getattr\((?:self\.)?config, \"(\w+)\"", source))
    assert len(read) > 10
    assert (
        sorted(name for name in read - _NOT_KEYS - kind.keys.aliases.keys() if not kind.keys.has(name)) == []
    )


CHANGED = [(kind, name) for kind, architecture in KINDS.items() for name in architecture.keys.fixed]


@pytest.mark.parametrize(("model_type", "name"), CHANGED)
def test_another_value_of_a_fixed_key_is_refused(model_type: str, name: str) -> None:
    keys = KINDS[model_type].keys
    value = keys.fixed[name]
    other = not value if isinstance(value, bool) else 7 if isinstance(value, int) else "other"
    with pytest.raises(HubError, match=rf"^{name} in config.json: must be"):
        keys.complete({name: other})
    assert keys.complete({name: value})[name] == value


def test_unknown_keys_are_refused_unless_they_are_off(kind: Architecture) -> None:
    for value in (True, 3, "yes", {"bits": 4}, [1]):
        with pytest.raises(HubError, match=r"^quantization_config in config\.json: must not be set"):
            kind.keys.complete({"quantization_config": value})
    off = {"quantization_config": None, "use_mrope": False, "pruned_heads": {}}
    assert kind.keys.complete({**off, "_name_or_path": "x"}).items() >= off.items()


def test_aliases_are_accepted_and_must_agree(kind: Architecture) -> None:
    for alias, name in kind.keys.aliases.items():
        assert kind.keys.complete({alias: 5})[name] == 5
        with pytest.raises(HubError, match=f"{alias} in config.json: must equal {name}, 6"):
            kind.keys.complete({alias: 5, name: 6})


def test_folders_that_transformers_writes_are_known(kind: Architecture, tmp_path: Path) -> None:
    save(make(MADE.get(kind.model_type, kind.model_type)), tmp_path)
    assert ModelFolder.open(tmp_path).architecture is kind


@pytest.mark.parametrize(
    ("model_type", "missing", "setting", "value"),
    [
        ("mistral", "sliding_window", "sliding_window", 4096),
        ("mistral", "num_key_value_heads", "num_kv_heads", 8),
        ("mixtral", "rms_norm_eps", "norm_eps", 1e-5),
        ("mixtral", "rope_parameters", "rope_theta", 1e6),
        ("llama", "rope_parameters", "rope_theta", 1e4),
        ("llama", "num_key_value_heads", "num_kv_heads", 16),
    ],
)
def test_missing_keys_mean_what_they_mean_in_transformers(
    model_type: str, missing: str, setting: str, value: Any
) -> None:
    given = LLAMA | {"num_attention_heads": 16, "hidden_size": 64, "num_local_experts": 4}
    given.pop(missing, None)
    architecture = KINDS[model_type]
    if model_type != "mixtral":
        given.pop("num_local_experts")
    assert getattr(architecture.read(architecture.keys.complete(given)), setting) == value


# The keys of published files that bear on the model, with those that look as if they did.
_T5_SMALL = {
    "model_type": "t5", "d_ff": 2048, "d_kv": 64, "d_model": 512, "decoder_start_token_id": 0,
    "dropout_rate": 0.1, "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-6,
    "n_positions": 512, "num_heads": 8, "num_layers": 6, "output_past": True,
    "relative_attention_num_buckets": 32, "task_specific_params": {"summarization": {"num_beams": 4}},
    "vocab_size": 32_128,
}  # fmt: skip
_MT5_SMALL = {
    "model_type": "mt5", "d_ff": 1024, "d_kv": 64, "d_model": 512, "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True, "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8,
    "tie_word_embeddings": False, "tokenizer_class": "T5Tokenizer", "vocab_size": 250_112,
}  # fmt: skip
_LLAMA3 = {
    "model_type": "llama", "attention_bias": False, "head_dim": 64, "hidden_act": "silu",
    "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131_072, "mlp_bias": False,
    "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    "vocab_size": 128_256,
}  # fmt: skip
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "t5-small": (_T5_SMALL, 60_506_624),
    "flan-t5-small": (
        _MT5_SMALL | {
            "model_type": "t5", "dense_act_fn": "gelu_new", "is_gated_act": True, "vocab_size": 32_128,
        },
        76_961_152,
    ),
    "mt5-small": (_MT5_SMALL, 300_176_768),
    "umt5-small": (
        _MT5_SMALL | {"model_type": "umt5", "scalable_attention": True, "vocab_size": 256_384},
        306_601_984,
    ),
    "switch-base-8": (
        {
            "model_type": "switch_transformers", "add_router_probs": False,
            "batch_prioritized_routing": False, "d_ff": 3072, "d_kv": 64, "d_model": 768,
            "decoder_sparse_step": 2, "dense_act_fn": "relu", "encoder_sparse_step": 2,
            "expert_capacity": 64, "feed_forward_proj": "relu", "is_encoder_decoder": True,
            "is_gated_act": False, "num_decoder_layers": 12, "num_experts": 8, "num_heads": 12,
            "num_layers": 12, "num_selected_experts": 1, "num_sparse_decoder_layers": 6,
            "num_sparse_encoder_layers": 6, "router_bias": False, "router_dtype": "float32",
            "router_type": "tokens_masked", "vocab_size": 32_128,
        },
        619_339_008,
    ),
    "gpt2": (
        {
            "model_type": "gpt2", "activation_function": "gelu_new", "attn_pdrop": 0.1, "n_ctx": 1024,
            "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "summary_type": "cls_index",
            "task_specific_params": {"text-generation": {"do_sample": True}}, "vocab_size": 50_257,
        },
        124_439_808,
    ),
    "Llama-3.2-1B": (_LLAMA3, 1_235_814_400),
    "Mistral-7B-v0.1": (
        {
            "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14_336,
            "max_position_embeddings": 32_768, "num_attention_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "sliding_window": 4096,
            "tie_word_embeddings": False, "vocab_size": 32_000,
        },
        7_241_732_096,
    ),
    "Qwen2-0.5B": (
        {
            "model_type": "qwen2", "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 896,
            "intermediate_size": 4864, "max_position_embeddings": 131_072, "max_window_layers": 24,
            "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "sliding_window": 131_072,
            "tie_word_embeddings": True, "use_mrope": False, "use_sliding_window": False,
            "vocab_size": 151_936,
        },
        494_032_768,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_read_as_models_of_the_published_size(name: str) -> None:
    settings, total = PUBLISHED[name]
    architecture = KINDS[settings["model_type"]]
    assert count_parameters(architecture.read(architecture.keys.complete(settings)), 1).total == total
