"""Folders of a model with other tensor names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: no folders")

import transformers
from safetensors.torch import load_file, save_file
from their_models import LLAMA, SWITCH, T5, make, ours_from, save

from reptrain.errors import HubError
from reptrain.hub import ModelFolder
from reptrain.hub.names import full_names
from reptrain.model import Decoder

WEIGHTS = "model.safetensors"


def logits(path: Path) -> torch.Tensor:
    model = ours_from(path)
    tokens_BT = torch.arange(2, 32).view(2, 15)
    with torch.no_grad():
        if isinstance(model, Decoder):
            return model(tokens_BT)
        ones_BT = torch.ones_like(tokens_BT)
        return model(tokens_BT, tokens_BT, source_segments_BS=ones_BT, segments_BT=ones_BT)


def rename(path: Path, change: Callable[[str], str | None]) -> None:
    """Rename a folder's tensors; tensors renamed to None are removed."""
    tensors = load_file(path / WEIGHTS)
    renamed = {change(name): tensor for name, tensor in tensors.items()}
    renamed.pop(None, None)
    save_file(renamed, path / WEIGHTS, {"format": "pt"})


BASES = ["gpt2", "llama-tied", "qwen2", "t5-1.0"]


@pytest.mark.parametrize("kind", BASES)
def test_base_model_with_tied_embeddings_is_the_model(kind: str, tmp_path: Path) -> None:
    whole = make(kind)
    save(whole, tmp_path / "whole")
    # As `GPT2Model` and its like are saved: without their prefix, and without a head.
    base = transformers.AutoModel.from_pretrained(tmp_path / "whole")
    save(base, tmp_path / "base")
    names = load_file(tmp_path / "base" / WEIGHTS).keys()
    assert not any(name.startswith(("transformer.", "model.", "lm_head")) for name in names)
    assert torch.equal(logits(tmp_path / "base"), logits(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("kind", "head"), [("llama", "LlamaForCausalLM"), ("mixtral", "MixtralForCausalLM"), ("mistral", "")]
)
def test_base_model_without_its_own_head_is_refused(kind: str, head: str, tmp_path: Path) -> None:
    save(make(kind).base_model, tmp_path)
    with pytest.raises(HubError, match=rf"a base model without its output head.*{head}"):
        ours_from(tmp_path)


def test_base_model_with_the_head_beside_it_is_read(tmp_path: Path) -> None:
    expected = logits(save(make("mixtral"), tmp_path))
    rename(tmp_path, lambda name: name.removeprefix("model."))
    assert torch.equal(logits(tmp_path), expected)


def test_encoder_only_model_is_refused(tmp_path: Path) -> None:
    encoder = transformers.T5EncoderModel(transformers.T5Config(**T5))
    save(encoder, tmp_path)
    with pytest.raises(HubError, match=r"is_encoder_decoder in config\.json.*an encoder only"):
        ours_from(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"is_encoder_decoder": True}))
    with pytest.raises(HubError, match=r"an encoder only.*Save the whole model, as T5For"):
        ours_from(tmp_path)


def test_base_switch_is_the_model(tmp_path: Path) -> None:
    whole = transformers.SwitchTransformersForConditionalGeneration(
        transformers.SwitchTransformersConfig(**SWITCH)
    )
    save(whole, tmp_path / "whole")
    save(transformers.SwitchTransformersModel.from_pretrained(tmp_path / "whole"), tmp_path / "base")
    assert torch.equal(logits(tmp_path / "base"), logits(tmp_path / "whole"))


TIED = {
    "gpt2": ("transformer.wte.weight", "lm_head.weight"),
    "llama-tied": ("model.embed_tokens.weight", "lm_head.weight"),
    "qwen2": ("model.embed_tokens.weight", "lm_head.weight"),
    "t5-1.0": ("shared.weight", "lm_head.weight"),
    "t5-gelu": ("shared.weight", "encoder.embed_tokens.weight"),
    "switch": ("shared.weight", "decoder.embed_tokens.weight"),
    # Its head is its own; only the embeddings are one.
    "umt5": ("shared.weight", "decoder.embed_tokens.weight"),
}


@pytest.mark.parametrize("kind", TIED)
def test_any_name_of_a_tied_tensor_is_accepted(kind: str, tmp_path: Path) -> None:
    expected = logits(save(make(kind), tmp_path))
    usual, other = TIED[kind]
    rename(tmp_path, lambda name: other if name == usual else name)
    assert torch.equal(logits(tmp_path), expected)


def test_tied_base_model_may_keep_the_name_of_its_head(tmp_path: Path) -> None:
    expected = logits(save(make("gpt2"), tmp_path))
    names = {"transformer.wte.weight": "lm_head.weight"}
    rename(tmp_path, lambda name: names.get(name, name.removeprefix("transformer.")))
    assert torch.equal(logits(tmp_path), expected)


def test_untied_embedding_is_not_read_from_the_head(tmp_path: Path) -> None:
    save(make("llama"), tmp_path)
    rename(tmp_path, lambda name: None if "embed_tokens" in name else name)
    with pytest.raises(HubError, match=r"no tensor model\.embed_tokens\.weight"):
        ours_from(tmp_path)


def test_experts_in_one_tensor_are_read(tmp_path: Path) -> None:
    """The layout of transformers 5 in memory, which it can also write."""
    whole = make("mixtral")
    expected = logits(save(whole, tmp_path / "usual"))
    whole.save_pretrained(tmp_path / "fused", save_original_format=False)
    assert any("gate_up_proj" in name for name in load_file(tmp_path / "fused" / WEIGHTS))
    assert torch.equal(logits(tmp_path / "fused"), expected)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefix_of_a_wrapper_is_removed(wrapper: str, tmp_path: Path) -> None:
    expected = logits(save(make("gpt2"), tmp_path))
    rename(tmp_path, lambda name: wrapper + name)
    assert torch.equal(logits(tmp_path), expected)


def test_buffers_of_old_folders_are_ignored(tmp_path: Path) -> None:
    expected = logits(save(make("gpt2"), tmp_path / "gpt2"))
    tensors = load_file(tmp_path / "gpt2" / WEIGHTS)
    old = {f"transformer.h.0.attn.{name}": torch.ones(1) for name in ("bias", "masked_bias")}
    save_file(tensors | old, tmp_path / "gpt2" / WEIGHTS)
    rename(tmp_path / "gpt2", lambda name: name.removeprefix("transformer."))
    assert torch.equal(logits(tmp_path / "gpt2"), expected)


def test_shards_of_a_base_model_are_read(tmp_path: Path) -> None:
    save(make("llama-tied"), tmp_path / "whole")
    base = transformers.AutoModel.from_pretrained(tmp_path / "whole")
    base.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(tmp_path / "shards"), logits(tmp_path / "whole"))


def test_single_file_takes_precedence_over_an_old_index(tmp_path: Path) -> None:
    expected = logits(save(make("llama"), tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    assert torch.equal(logits(tmp_path), expected)


OTHERS = {
    "pytorch_model.bin": r"got pytorch_model.bin. Load it with transformers.*save_pretrained",
    "pytorch_model-00001-of-00002.bin": "Load it with transformers and save it again",
    "tf_model.h5": "Load it with transformers and save it again",
    "model-00001-of-00002.safetensors": "Restore model.safetensors, or model.safetensors.index.json",
    "adapter_model.safetensors": "It holds an adapter: merge it",
}


@pytest.mark.parametrize("name", OTHERS)
def test_weights_in_another_format_are_named(name: str, tmp_path: Path) -> None:
    transformers.LlamaConfig(**LLAMA).save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(HubError, match=OTHERS[name]):
        _ = ModelFolder.open(tmp_path).files


def test_full_names_keep_names_with_mixed_prefixes() -> None:
    names = ["model.norm.weight", "norm.weight"]
    assert full_names(names, "model.") == {name: name for name in names}
    found: dict[str, Any] = full_names(["h.0.a", "lm_head.weight"], "transformer.")
    assert found == {"transformer.h.0.a": "h.0.a", "lm_head.weight": "lm_head.weight"}
