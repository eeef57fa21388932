"""Writing of Hugging Face folders: config.json and safetensors in shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptrain.checkpoint.tensor_file import StoredTensor, write_tensors
from reptrain.config.model import ModelConfig
from reptrain.files import write_atomically
from reptrain.hub.architecture import Architecture
from reptrain.hub.folder import ARCHITECTURES, CONFIG, INDEX, SINGLE
from reptrain.hub.parts import Part, join, shape_of

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture as which a model of ours is written."""
    return next(one for one in ARCHITECTURES if one.fits(config))


def save_model(
    path: Path,
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    parameter: Callable[[str, int | None], Tensor],
    settings: Mapping[str, Any],
    *,
    max_shard_bytes: int,
    dtype: str,
) -> None:
    """Write the weights, then config.json. A folder with config.json is complete.

    Args:
        path: The folder.
        config: The model.
        shapes: Shapes of the model's parameters by name.
        parameter: Returns a parameter by name, or the slice of one expert. One tensor is held at a time.
        settings: Content of config.json (see `model_settings`).
        max_shard_bytes: Maximum size of a file; only a single larger tensor exceeds it.
        dtype: fp32, bf16 or fp16.
    """
    shards = _shards(config, shapes, max_shard_bytes=max_shard_bytes, itemsize=_DTYPES[dtype].itemsize)
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    )
    for name, shard in zip(names, shards, strict=True):
        tensors = [
            StoredTensor(part.theirs, shape_of(part, shapes), partial(join, part, parameter))
            for part in sorted(shard, key=lambda part: part.theirs)
        ]
        write_tensors(path / name, tensors, _DTYPES[dtype], {"format": "pt"})
    if len(shards) > 1:
        total = sum(prod(shape_of(part, shapes)) for shard in shards for part in shard)
        total *= _DTYPES[dtype].itemsize
        where = {part.theirs: name for name, shard in zip(names, shards, strict=True) for part in shard}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_atomically(path / INDEX, json.dumps(index, indent=2) + "\n")
    write_atomically(path / CONFIG, json.dumps({**settings, "dtype": _dtype_name(dtype)}, indent=2) + "\n")


def _shards(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], *, max_shard_bytes: int, itemsize: int
) -> list[list[Part]]:
    """The tensors of each file, in order."""
    shards: list[list[Part]] = [[]]
    shard_bytes = 0
    for part in architecture_of(config).parts(config):
        part_bytes = prod(shape_of(part, shapes)) * itemsize
        if shards[-1] and shard_bytes + part_bytes > max_shard_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(part)
        shard_bytes += part_bytes
    return shards


def _dtype_name(dtype: str) -> str:
    return str(_DTYPES[dtype]).removeprefix("torch.")


def model_settings(config: ModelConfig, *, rows: int) -> dict[str, Any]:
    """Content of a model's config.json.

    Args:
        config: The model.
        rows: Rows of its embedding.

    Raises:
        HubError: If transformers has no such model.
    """
    architecture = architecture_of(config)
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "vocab_size": rows,
        **architecture.write(config),
        "use_cache": True,
    }
