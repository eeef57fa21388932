"""Hugging Face folders: config.json, safetensors in shards, and the way in and out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reptrain.config.base import check_name
from reptrain.config.model import ModelConfig, T5Config
from reptrain.errors import HubError
from reptrain.files import read_small, write_atomically
from reptrain.hub.architecture import Architecture
from reptrain.hub.gpt2 import GPT2
from reptrain.hub.llama import LLAMA, MISTRAL, MIXTRAL, QWEN2
from reptrain.hub.names import HEAD, full_names, refuse_other_weights
from reptrain.hub.parts import Part, join, shape_of, take_apart
from reptrain.hub.t5 import MT5, SWITCH, T5, UMT5
from reptrain.hub.tokenizer_files import SpecialIds
from reptrain.reading import ReadError, parse_json

# The first that fits a model of ours is the one that it is written as.
ARCHITECTURES = (T5, MT5, UMT5, SWITCH, GPT2, MIXTRAL, QWEN2, MISTRAL, LLAMA)
CONFIG = "config.json"
_GENERATION = "generation_config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Of safetensors. float64 would be rounded, and an integer is no weight.
_READABLE = ("F32", "BF16", "F16")
_MOST_MISSING = 1000
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ModelFolder:
    """A folder that holds a model of one of `ARCHITECTURES`."""

    path: Path
    settings: dict[str, Any]
    """Its config.json."""
    architecture: Architecture
    config: ModelConfig
    """The model as ours; `vocab_size` is set."""

    @classmethod
    def open(cls, path: Path) -> ModelFolder:
        """Read a folder's config.json.

        Raises:
            HubError: If it is none, or of a model that we do not have.
        """
        settings = _read_json(path / CONFIG)
        known = {architecture.model_type: architecture for architecture in ARCHITECTURES}
        name = settings.get("model_type")
        if not isinstance(name, str) or name not in known:
            raise HubError(
                f"model_type in {path / CONFIG}",
                got=name or "nothing",
                rule=f"must be one of {', '.join(known)}",
                remedy="reptrain has no other model that transformers has.",
            )
        try:
            settings = known[name].keys.complete(settings)
            config = known[name].read(settings)
        except HubError:
            raise
        except (ArithmeticError, AttributeError, TypeError) as error:
            raise HubError(
                f"{path / CONFIG}",
                got=f"a value of another kind than its key's: {error}",
                rule="must be as transformers writes it",
                remedy="Restore the file.",
            ) from error
        except ValidationError as error:
            detail = error.errors()[0]
            raise HubError(
                f"{path / CONFIG}",
                got=f"{'.'.join(map(str, detail['loc']))}={detail['input']}",
                rule=detail["msg"],
                remedy="reptrain has no such model.",
            ) from error
        return cls(path, settings, known[name], config)

    @property
    def window_tokens(self) -> int | None:
        """Positions that the model is meant for, as its config.json has it; None where it says nothing.

        Raises:
            HubError: If it is no number of positions.
        """
        found = self.settings.get("max_position_embeddings")
        if found is not None and (type(found) is not int or not 0 < found < 2**31):
            raise HubError(
                f"max_position_embeddings in {self.path / CONFIG}",
                got=repr(found),
                rule="must be a positive integer below 2**31",
                remedy="Restore the file.",
            )
        return found

    def special_ids(self) -> SpecialIds:
        """What begins and ends a text, as its config.json has it, or its generation_config.json."""
        settings = self.settings
        end = settings.get("eos_token_id")
        if end is None and (self.path / _GENERATION).exists():
            end = _read_json(self.path / _GENERATION).get("eos_token_id")
        ends = end if isinstance(end, list) else [] if end is None else [end]
        start = settings.get("bos_token_id")
        if isinstance(self.config, T5Config):
            start = settings.get("decoder_start_token_id", settings.get("pad_token_id", 0))
        ids = self.config.vocab_size or 0
        for index in (*ends, *([] if start is None else [start])):
            if type(index) is not int or not 0 <= index < ids:
                raise HubError(
                    f"a special id in {self.path / CONFIG}",
                    got=repr(index),
                    rule=f"must be from 0 to {ids - 1}, as there are {ids} ids",
                    remedy="Restore the file.",
                )
        return SpecialIds(start, tuple(ends))

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file of each tensor.

        Raises:
            HubError: If there is none, one is named that is not there, or one cannot be read.
        """
        # As transformers does, which writes one or the other and may leave an old index behind.
        if (self.path / _SINGLE).exists():
            names = [_SINGLE]
        elif (self.path / _INDEX).exists():
            weight_map = _read_json(self.path / _INDEX).get("weight_map")
            if not isinstance(weight_map, dict):
                raise HubError(
                    f"weight_map in {self.path / _INDEX}",
                    got=repr(weight_map),
                    rule="must map the name of each tensor to its file",
                    remedy="Restore the file.",
                )
            names = sorted({self._file_name(name) for name in weight_map.values()})
        else:
            names = []
            refuse_other_weights(self.path, _SINGLE)
        found: dict[str, Path] = {}
        for name in names:
            with _open(self.path / name) as file:
                found |= dict.fromkeys(file.keys(), self.path / name)
        return found

    def _file_name(self, name: object) -> str:
        try:
            return check_name(name) if isinstance(name, str) else check_name("")
        except ValueError as error:
            raise HubError(
                f"weight_map in {self.path / _INDEX}",
                got=repr(name),
                rule="must name files of its own folder",
                remedy="Restore the file.",
            ) from error

    @cached_property
    def tensors(self) -> dict[str, str]:
        """The name in the files of each tensor, by the name that it has in the class with a head."""
        return full_names(self.files, self.architecture.prefix)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Fill our parameters.

        Args:
            weights: Each parameter of the model by name; written to, whatever the folder's dtype.

        Raises:
            HubError: If a tensor is missing, has another shape, is one too many, or repeats the embedding
                with other values.
        """
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        parts = self.check(shapes)
        with ExitStack() as stack, torch.no_grad():
            opened = {path: stack.enter_context(_open(path)) for path in set(self.files.values())}
            for part in parts:
                stored = self.tensors[self._source(part.theirs)]
                tensor = opened[self.files[stored]].get_tensor(stored)
                if not bool(torch.isfinite(tensor).all()):
                    raise self._wrong(f"NaN or infinity in {stored}", "must hold finite weights")
                take_apart(part, tensor, weights)
            self._check_copies(opened, parts)

    def check(self, shapes: Mapping[str, Iterable[int]]) -> list[Part]:
        """Hold the headers of the folder's tensors against our parameters.

        Args:
            shapes: Of each parameter, by name.

        Returns:
            The tensors to read.

        Raises:
            HubError: See `load`.
        """
        architecture, parts = self.architecture, self.check_names()
        wanted = {part.theirs: shape_of(part, shapes) for part in parts}
        extra = [name for name in sorted(self.tensors.keys() - wanted.keys()) if not self._is_known(name)]
        if extra:
            raise self._wrong(
                f"the tensor {_named([self.tensors[name] for name in extra])}",
                "must hold no tensor that the model has not",
                f"Save the model as {architecture.class_name}: no other head is read.",
            )
        with ExitStack() as stack:
            opened = {path: stack.enter_context(_open(path)) for path in set(self.files.values())}
            for name, shape in wanted.items():
                stored = self.tensors[self._source(name)]
                view = opened[self.files[stored]].get_slice(stored)
                found = tuple(view.get_shape())
                if found != shape:
                    raise self._wrong(f"{stored} of shape {found}", f"must hold it in the shape {shape}")
                if view.get_dtype() not in _READABLE:
                    raise self._wrong(
                        f"{stored} of dtype {view.get_dtype()}", f"must hold it as {', '.join(_READABLE)}"
                    )
        return parts

    def check_names(self) -> list[Part]:
        """The tensors that the model is made of, each of which the folder has.

        Costs little, however large a model config.json claims.

        Raises:
            HubError: If one is missing.
        """
        layouts = [self.architecture.parts, self.architecture.other_parts]
        held = [self._held(parts(self.config)) for parts in layouts if parts is not None]
        parts, missing = min(held, key=lambda one: len(one[1]))
        if missing:
            raise self._lacks(sorted(missing))
        return parts

    def _held(self, layout: Iterable[Part]) -> tuple[list[Part], list[str]]:
        """The tensors of a layout, and the names of those that the folder lacks, up to a limit."""
        parts: list[Part] = []
        missing: list[str] = []
        for part in layout:
            parts.append(part)
            if self._source(part.theirs) not in self.tensors:
                missing.append(part.theirs)
                if len(missing) > _MOST_MISSING:
                    break
        return parts, missing

    def _source(self, name: str) -> str:
        """The tensor that a tensor of the model is read from: itself, or one that is tied to it."""
        architecture, embedding = self.architecture, self.architecture.embedding
        if name in self.tensors or name not in (embedding, HEAD):
            return name
        is_tied = self.config.tie_embeddings or architecture.repeats_embedding(self.settings)
        if name == HEAD and not is_tied:
            return name
        others = (embedding, *sorted(architecture.copies), *((HEAD,) if is_tied else ()))
        return next((other for other in others if other in self.tensors), name)

    def _lacks(self, missing: list[str]) -> HubError:
        """The error for missing tensors; the usual reasons are named."""
        held, whole = self.architecture.class_name, "must hold every tensor of the model"
        got = f"no tensor {_named(missing)}"
        if missing == [HEAD]:
            return self._wrong(
                f"{got}: a base model without its output head, whose embeddings are not tied",
                whole,
                f"Save the model with its head, as {held}; transformers' base classes leave it out.",
            )
        if any(name.startswith("encoder.") for name in self.tensors) and not any(
            name.startswith("decoder.") for name in self.tensors
        ):
            return self._wrong(f"{got}: an encoder alone", whole, f"Save the whole model, as {held}.")
        return self._wrong(got, whole)

    def _is_known(self, name: str) -> bool:
        architecture = self.architecture
        return name == HEAD or name in architecture.copies or name.endswith(architecture.ignored or "\0")

    def _check_copies(self, opened: Mapping[Path, Any], parts: Iterable[Part]) -> None:
        """A tensor that repeats the embedding must do so."""
        embedding = self._source(self.architecture.embedding)
        own_head = any(part.ours == ("head.weight",) for part in parts)
        for name in sorted(({*self.architecture.copies} | {HEAD}) & self.tensors.keys()):
            if name == HEAD and own_head:
                continue
            keys = (self.tensors[embedding], self.tensors[name])
            one, other = (opened[self.files[key]].get_tensor(key) for key in keys)
            if not torch.equal(one, other):
                raise self._wrong(
                    f"other values in {name} than in {embedding}",
                    "must tie them, as its tie_word_embeddings says"
                    if name == HEAD
                    else "must have one embedding for encoder and decoder",
                )

    def _wrong(self, got: str, rule: str, remedy: str | None = None) -> HubError:
        return HubError(
            f"Hugging Face folder {self.path}",
            got=got,
            rule=rule,
            remedy=remedy or "Restore its files, or write it again from the model that it should hold.",
        )


def _named(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]}, and {len(names) - 1} more"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_small(path))
    except (OSError, ReadError) as error:
        raise HubError(
            str(path),
            got=getattr(error, "strerror", None) or f"no JSON ({getattr(error, 'got', error)})",
            rule="must be a readable JSON object",
            remedy="Check the path: a Hugging Face folder has a config.json and .safetensors files.",
        ) from error
    return found if isinstance(found, dict) else {}


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise HubError(
            str(path),
            got=getattr(error, "strerror", None) or str(error),
            rule="must be a readable safetensors file",
            remedy="Restore the file.",
        ) from error


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture of a model of ours."""
    return next(one for one in ARCHITECTURES if one.fits(config))


def save_model(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    *,
    max_shard_bytes: int,
    dtype: str,
) -> None:
    """Write config.json and the weights; each file is whole or not there, and config.json comes last.

    Args:
        path: The folder.
        config: The model.
        weights: Its parameters by name.
        settings: What else config.json says (see `model_settings`).
        max_shard_bytes: A file holds more only where one tensor does.
        dtype: fp32, bf16 or fp16.
    """
    architecture = architecture_of(config)
    parts = list(architecture.parts(config))
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    width = _DTYPES[dtype].itemsize
    shards: list[list[Part]] = [[]]
    held = 0
    for part in parts:
        size = torch.Size(shape_of(part, shapes)).numel() * width
        if shards[-1] and held + size > max_shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(part)
        held += size
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    )
    total = 0
    for name, shard in zip(names, shards, strict=True):
        tensors = {part.theirs: join(part, weights).to(_DTYPES[dtype]) for part in shard}
        # Views of one parameter, as a shared layer's copies are, must not share memory in a file.
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, path / name, {"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        where = {part.theirs: name for name, shard in zip(names, shards, strict=True) for part in shard}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_atomically(path / _INDEX, json.dumps(index, indent=2) + "\n")
    write_atomically(path / CONFIG, json.dumps({**settings, "dtype": _dtype_name(dtype)}, indent=2) + "\n")


def _dtype_name(dtype: str) -> str:
    return str(_DTYPES[dtype]).removeprefix("torch.")


def model_settings(config: ModelConfig, *, rows: int) -> dict[str, Any]:
    """The config.json of a model.

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
