"""Damaged or unsupported folders: one clear error each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: no folders")

from safetensors.torch import load_file, save_file
from their_models import T5, make, ours_from, save

from reptrain.errors import HubError
from reptrain.hub import ModelFolder

Tensors = dict[str, torch.Tensor]
Q = "encoder.block.1.layer.0.SelfAttention.q.weight"


def rewrite(path: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def settings(path: Path, **changed: Any) -> None:
    found = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(found | changed))


TENSORS: dict[str, tuple[str, Callable[[Tensors], Any], str]] = {
    "missing": ("t5-1.0", lambda t: t.pop(Q), f"no tensor {Q}"),
    "extra": (
        "t5-1.0", lambda t: t.update(more=torch.ones(2)), "tensors only, but got the tensor more",
    ),
    "misshapen": ("t5-1.0", lambda t: t.update({Q: torch.ones(2, 3)}), r"q.weight of shape \(2, 3\)"),
    "another head": (
        "t5-1.0", lambda t: t.update({"lm_head.weight": t["shared.weight"] + 1}), "tie_word_embeddings",
    ),
    "another embedding": (
        "switch", lambda t: t.update({"encoder.embed_tokens.weight": t["shared.weight"] + 1}),
        "same embedding in encoder and decoder",
    ),
    "no head": ("llama", lambda t: t.pop("lm_head.weight"), "no tensor lm_head.weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_wrong_tensors_are_named(case: str, tmp_path: Path) -> None:
    kind, change, words = TENSORS[case]
    rewrite(save(make(kind), tmp_path), change)
    with pytest.raises(HubError, match=words):
        ours_from(tmp_path)


SETTINGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown architecture": ("llama", {"model_type": "mamba"}, "must be one of t5, .*llama"),
    "another activation": ("llama", {"hidden_act": "gelu"}, "hidden_act in config.json"),
    "exact GELU": ("t5-1.1", {"dense_act_fn": "gelu"}, "dense_act_fn in config.json"),
    "exact GELU by its older key": (
        "t5-1.0", {"feed_forward_proj": "gelu", "dense_act_fn": None}, "feed_forward_proj in config.json",
    ),
    "another gate": ("t5-1.0", {"is_gated_act": True}, "dense_act_fn in config.json"),
    "long context": (
        "llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type in config.json",
    ),
    "long context by its older key": (
        "llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type in config",
    ),
    "a part of the rotation": (
        "llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor in config.json: must be 1",
    ),
    "a scaling without its factor": (
        "llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor in config.json: must be set",
    ),
    "some layers with a window": ("qwen2-window", {"layer_types": ["full_attention", "sliding_attention"]},
        "layer_types in config.json: must give all layers a sliding window or none",
    ),
    "an encoder alone": ("t5-1.0", {"is_encoder_decoder": False}, "an encoder only"),
    "two names of one size": ("gpt2", {"hidden_size": 30}, "hidden_size in config.json: must equal n_embd"),
    "nothing": ("llama", {"num_hidden_layers": None}, "num_hidden_layers in config.json: must be set"),
    "odd heads": (
        "llama", {"num_attention_heads": 3, "head_dim": None},
        r"config\.json: d_model must be num_heads times .* is not even\. reptrain",
    ),
    "odd head width": ("llama", {"head_dim": 9}, "head_dim must be even"),
    "first layer sparse": (
        "switch", {"encoder_sparse_step": 3}, r"sparse layers \[1\] of the encoder and \[1, 3\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_wrong_settings_are_named(case: str, tmp_path: Path) -> None:
    kind, changed, words = SETTINGS[case]
    settings(save(make(kind), tmp_path), **changed)
    with pytest.raises(HubError, match=words):
        ModelFolder.open(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="No such file"):
        ModelFolder.open(tmp_path)
    save(make("t5-1.0"), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    with pytest.raises(HubError, match="must be a readable safetensors file"):
        ours_from(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(HubError, match="No such file"):
        ours_from(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(HubError, match="must be a readable JSON object"):
        ModelFolder.open(tmp_path)


def test_untied_t5_11_without_a_head_gets_a_copy_of_the_embedding(tmp_path: Path) -> None:
    """transformers 5 ties the head of every new T5 and does not scale the output of 1.1."""
    theirs = make("t5-1.1", own_head=False)
    ours = ours_from(save(theirs, tmp_path))
    tokens_BT = torch.arange(2, 42).view(2, 20)
    ones_BT = torch.ones_like(tokens_BT)
    with torch.no_grad():
        logits_BTV = ours(tokens_BT, tokens_BT, source_segments_BS=ones_BT, segments_BT=ones_BT)
        expected_BTV = theirs(input_ids=tokens_BT, decoder_input_ids=tokens_BT).logits
    assert not ours.config.tie_embeddings
    # Unscaled, the logits are sqrt(d_model) times as large.
    scale = T5["d_model"] ** 0.5
    torch.testing.assert_close(logits_BTV / scale, expected_BTV / scale, rtol=0, atol=1e-5)


KINDS: dict[str, tuple[Any, str]] = {
    "num_attention_heads": (0, "num_heads=0"),
    "num_key_value_heads": ("two", "num_key_value_heads|num_kv_heads|wrong type"),
    "model_type": (["llama"], "model_type"),
    "rope_parameters": ([1], "wrong type"),
    "rope_theta": ("abc", "wrong type"),
}


@pytest.mark.parametrize("key", KINDS)
def test_settings_of_the_wrong_type_are_named(key: str, tmp_path: Path) -> None:
    value, words = KINDS[key]
    save(make("llama"), tmp_path)
    if key == "rope_theta":
        settings(tmp_path, rope_parameters=None)
    settings(tmp_path, **{key: value})
    with pytest.raises(HubError, match=words):
        ModelFolder.open(tmp_path)


@pytest.mark.parametrize("index", ["x", -1, 10**6])
def test_special_ids_beyond_the_vocabulary_are_named(index: Any, tmp_path: Path) -> None:
    settings(save(make("llama"), tmp_path), eos_token_id=index)
    with pytest.raises(HubError, match="special id"):
        ModelFolder.open(tmp_path).special_ids()


def test_index_without_a_weight_map_is_named(tmp_path: Path) -> None:
    save(make("llama"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')
    with pytest.raises(HubError, match="weight_map"):
        _ = ModelFolder.open(tmp_path).files
