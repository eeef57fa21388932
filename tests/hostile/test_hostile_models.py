"""Hugging Face folders whose claims or tensors are hostile: one error each, before memory is taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_calls import call, check, refused
from safetensors.torch import load_file, save_file

NORM = "model.norm.weight"


@pytest.fixture
def model(folders: Path, tmp_path: Path) -> Path:
    """A copy of a sound one."""
    return Path(shutil.copytree(folders / "model", tmp_path / "model"))


def settings(model: Path, **changed: Any) -> None:
    found = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(found | changed))


def tensors(model: Path, **changed: torch.Tensor) -> None:
    found = load_file(model / "model.safetensors")
    save_file(found | changed, model / "model.safetensors")


def test_the_sound_folder_is_imported(model: Path) -> None:
    assert call("import", model, model.parent / "out").code == 0


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.full((32,), torch.nan), "NaN or infinity in model.norm.weight"),
        (torch.full((32,), -torch.inf), "NaN or infinity in model.norm.weight"),
        (torch.full((32,), torch.inf, dtype=torch.bfloat16), "NaN or infinity in model.norm.weight"),
        (torch.ones(32, dtype=torch.int64), "model.norm.weight of dtype I64"),
        (torch.ones(32, dtype=torch.uint8), "model.norm.weight of dtype U8"),
        (torch.ones(32, dtype=torch.bool), "model.norm.weight of dtype BOOL"),
        (torch.ones(32, dtype=torch.float64), "model.norm.weight of dtype F64"),
        (torch.ones(32).to(torch.float8_e4m3fn), "model.norm.weight of dtype F8"),
        (torch.ones(0), "model.norm.weight of shape (0,)"),
        (torch.ones(32, 1), "model.norm.weight of shape (32, 1)"),
    ],
    ids=str,
)
def test_tensors_that_are_no_weights_are_named(model: Path, tensor: torch.Tensor, words: str) -> None:
    tensors(model, **{NORM: tensor})
    assert words in refused("import", model, model.parent / "out")
    assert not (model.parent / "out").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_imported(model: Path, dtype: torch.dtype) -> None:
    tensors(model, **{NORM: torch.ones(32, dtype=dtype)})
    assert call("import", model, model.parent / "out").code == 0


@pytest.mark.parametrize(
    "key",
    ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"],
)
@pytest.mark.parametrize(
    "value", [10**12, 10**9, 4096, 2**62, 1e300, float("nan"), -1, 0, True, "x", [1], None]
)
def test_sizes_that_are_not_the_files_are_refused(model: Path, key: str, value: object) -> None:
    settings(model, **{key: value})
    refused("import", model, model.parent / "out")


def test_a_whole_model_of_absurd_size_is_refused(model: Path) -> None:
    settings(model, hidden_size=2**24, intermediate_size=2**24, num_hidden_layers=4096, vocab_size=2**31 - 1)
    refused("import", model, model.parent / "out")


@pytest.mark.parametrize(
    "key", ["eos_token_id", "bos_token_id", "max_position_embeddings", "rope_parameters"]
)
@pytest.mark.parametrize("value", [-1, 10**12, 1e300, True, "x", [[1]], {"a": 1}, [10**12]])
def test_other_settings_are_read_or_refused(model: Path, key: str, value: object) -> None:
    settings(model, **{key: value})
    check(call("import", model, model.parent / "out"))


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b", "", ".", "..", "x\0y", 5, None, [], "x" * 5000]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(model: Path, name: object) -> None:
    # Beside a single file the index is not read.
    (model / "model.safetensors").rename(model / "model-00001.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {NORM: name}}))
    refused("import", model, model.parent / "out")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{}",
        b"[" * 50_000,
        b'{"__metadata__": 5}',
        b'{"model.norm.weight": {"dtype": "U8", "shape": [999999999999], "data_offsets": [0, 999999999999]}}',
        b'{"model.norm.weight": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"model.norm.weight": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"model.norm.weight": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 4]}}',
    ],
    ids=range(8),
)
@pytest.mark.parametrize("length", [None, 0, 2**63, 2**64 - 1])
def test_headers_that_are_none_are_refused(model: Path, header: bytes, length: int | None) -> None:
    size = len(header) if length is None else length
    (model / "model.safetensors").write_bytes(size.to_bytes(8, "little") + header + b"\0" * 16)
    refused("import", model, model.parent / "out")
