"""Reading of Hugging Face folders: config.json and safetensors in shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from reptrain.config.base import check_name
from reptrain.config.explain import shown_value, violated_rule
from reptrain.config.model import ModelConfig, T5Config
from reptrain.errors import HubError
from reptrain.files import read_small
from reptrain.hub.architecture import Architecture
from reptrain.hub.gpt2 import GPT2
from reptrain.hub.llama import LLAMA, MISTRAL, MIXTRAL, QWEN2
from reptrain.hub.names import HEAD, full_names, refuse_other_weights
from reptrain.hub.parts import Part, shape_of, split
from reptrain.hub.t5 import MT5, SWITCH, T5, UMT5
from reptrain.hub.tokenizer_files import SpecialIds
from reptrain.reading import ReadError, parse_json

# A model of ours is written as the first architecture that fits it.
ARCHITECTURES = (T5, MT5, UMT5, SWITCH, GPT2, MIXTRAL, QWEN2, MISTRAL, LLAMA)
CONFIG = "config.json"
_GENERATION = "generation_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# dtypes of safetensors. float64 would be rounded, and integers are not weights.
_READABLE = ("F32", "BF16", "F16")
_MOST_MISSING = 1000


@dataclass(frozen=True)
class ModelFolder:
    """A folder that holds a model of one of `ARCHITECTURES`."""

    path: Path
    settings: dict[str, Any]
    """Content of config.json, with missing keys filled in."""
    architecture: Architecture
    config: ModelConfig
    """The model in our configuration; `vocab_size` is set."""

    @classmethod
    def open(cls, path: Path) -> ModelFolder:
        """Read a folder's config.json.

        Raises:
            HubError: If config.json is missing or wrong, or reptrain does not support this model.
        """
        settings = _read_json(path / CONFIG)
        known = {architecture.model_type: architecture for architecture in ARCHITECTURES}
        name = settings.get("model_type")
        if not isinstance(name, str) or name not in known:
            raise HubError(
                f"model_type in {path / CONFIG}",
                got=name or "nothing",
                rule=f"must be one of {', '.join(known)}",
                remedy="reptrain reads no other models of transformers.",
            )
        try:
            settings = known[name].keys.complete(settings)
            config = known[name].read(settings)
        except HubError:
            raise
        except (ArithmeticError, AttributeError, TypeError) as error:
            raise HubError(
                f"{path / CONFIG}",
                got=f"a value of the wrong type: {error}",
                rule="must be as transformers writes it",
                remedy="Restore the file.",
            ) from error
        except ValidationError as error:
            detail: dict[str, Any] = dict(error.errors()[0])
            shown = shown_value(detail["input"])
            raise HubError(
                f"{path / CONFIG}",
                got=None if shown is None else f"{'.'.join(map(str, detail['loc']))}={shown}",
                rule=violated_rule(detail),
                remedy="reptrain does not support this model.",
            ) from error
        return cls(path, settings, known[name], config)

    @property
    def window_tokens(self) -> int | None:
        """Maximum number of positions according to config.json; None if it is not set.

        Raises:
            HubError: If it is not a positive integer.
        """
        positions = self.settings.get("max_position_embeddings")
        if positions is not None and (type(positions) is not int or not 0 < positions < 2**31):
            raise HubError(
                f"max_position_embeddings in {self.path / CONFIG}",
                got=repr(positions),
                rule="must be a positive integer below 2**31",
                remedy="Restore the file.",
            )
        return positions

    def special_ids(self) -> SpecialIds:
        """Start and end ids of a text, from config.json or generation_config.json."""
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
                    rule=f"must be from 0 to {ids - 1}: the vocabulary has {ids} ids",
                    remedy="Restore the file.",
                )
        return SpecialIds(start, tuple(ends))

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file of each tensor.

        Raises:
            HubError: If there are no weights, or a file is missing or unreadable.
        """
        # The order of transformers, which writes one or the other and may leave an old index behind.
        if (self.path / SINGLE).exists():
            names = [SINGLE]
        elif (self.path / INDEX).exists():
            weight_map = _read_json(self.path / INDEX).get("weight_map")
            if not isinstance(weight_map, dict):
                raise HubError(
                    f"weight_map in {self.path / INDEX}",
                    got=repr(weight_map),
                    rule="must map tensor names to file names",
                    remedy="Restore the file.",
                )
            names = sorted({self._file_name(name) for name in weight_map.values()})
        else:
            names = []
            refuse_other_weights(self.path, SINGLE)
        files: dict[str, Path] = {}
        for name in names:
            with _open(self.path / name) as file:
                files |= dict.fromkeys(file.keys(), self.path / name)
        return files

    def _file_name(self, name: object) -> str:
        try:
            return check_name(name) if isinstance(name, str) else check_name("")
        except ValueError as error:
            raise HubError(
                f"weight_map in {self.path / INDEX}",
                got=repr(name),
                rule="must name files of the same folder",
                remedy="Restore the file.",
            ) from error

    @cached_property
    def tensors(self) -> dict[str, str]:
        """Stored name of each tensor, by its name in the transformers class with an output head."""
        return full_names(self.files, self.architecture.prefix)

    def load(
        self,
        weights: Mapping[str, Tensor],
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        parts: Sequence[Part] | None = None,
    ) -> None:
        """Copy weights into some or all of our parameters.

        Args:
            weights: Parameters of our model by name, filled in place; the folder may have another dtype.
            shapes: Shapes of all our parameters by name; None: ``weights`` has all of them.
            parts: The folder's tensors from `check`; None calls it.

        Raises:
            HubError: If a tensor is missing, unexpected, not finite or of another shape, or a copy of the
                embedding differs from it.
        """
        if shapes is None:
            shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if parts is None:
            parts = self.check(shapes)
        with ExitStack() as stack, torch.no_grad():
            opened = {path: stack.enter_context(_open(path)) for path in set(self.files.values())}
            for part in parts:
                if weights.keys().isdisjoint(part.ours):
                    continue
                stored = self.tensors[self._source(part.theirs)]
                tensor = opened[self.files[stored]].get_tensor(stored)
                if not bool(torch.isfinite(tensor).all()):
                    raise self._wrong(f"NaN or infinity in {stored}", "must hold finite weights")
                split(part, tensor, weights, shapes)
            if "embedding.weight" in weights:
                self._check_copies(opened, parts)

    def check(self, shapes: Mapping[str, Iterable[int]]) -> list[Part]:
        """Compare the headers of the folder's tensors with our parameters, without reading the weights.

        Args:
            shapes: Shapes of our parameters by name.

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
                f"the tensor {_first_name([self.tensors[name] for name in extra])}",
                "must hold the model's tensors only",
                f"Save the model as {architecture.class_name}: other heads are not supported.",
            )
        with ExitStack() as stack:
            opened = {path: stack.enter_context(_open(path)) for path in set(self.files.values())}
            for name, shape in wanted.items():
                stored = self.tensors[self._source(name)]
                view = opened[self.files[stored]].get_slice(stored)
                actual = tuple(view.get_shape())
                if actual != shape:
                    raise self._wrong(f"{stored} of shape {actual}", f"must hold it in the shape {shape}")
                if view.get_dtype() not in _READABLE:
                    raise self._wrong(
                        f"{stored} of dtype {view.get_dtype()}", f"must hold it as {', '.join(_READABLE)}"
                    )
        return parts

    def check_names(self) -> list[Part]:
        """The tensors of the model, by name only. Cheap, even if config.json describes a huge model.

        Raises:
            HubError: If the folder lacks one.
        """
        layouts = [self.architecture.parts, self.architecture.other_parts]
        candidates = [self._match(parts(self.config)) for parts in layouts if parts is not None]
        parts, missing = min(candidates, key=lambda candidate: len(candidate[1]))
        if missing:
            raise self._missing(sorted(missing))
        return parts

    def _match(self, layout: Iterable[Part]) -> tuple[list[Part], list[str]]:
        """The tensors of a layout, and the names of those that are missing, up to a limit."""
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
        """Name of the tensor from which a tensor of the model is read: itself, or one that is tied to it."""
        architecture, embedding = self.architecture, self.architecture.embedding
        if name in self.tensors or name not in (embedding, HEAD):
            return name
        is_tied = self.config.tie_embeddings or architecture.repeats_embedding(self.settings)
        if name == HEAD and not is_tied:
            return name
        others = (embedding, *sorted(architecture.copies), *((HEAD,) if is_tied else ()))
        return next((other for other in others if other in self.tensors), name)

    def _missing(self, missing: list[str]) -> HubError:
        """The error for missing tensors, with the cause in the usual cases."""
        class_name, rule = self.architecture.class_name, "must hold every tensor of the model"
        got = f"no tensor {_first_name(missing)}"
        if missing == [HEAD]:
            return self._wrong(
                f"{got}: a base model without its output head, whose embeddings are not tied",
                rule,
                f"Save the model with its head, as {class_name}; transformers' base classes leave it out.",
            )
        if any(name.startswith("encoder.") for name in self.tensors) and not any(
            name.startswith("decoder.") for name in self.tensors
        ):
            return self._wrong(f"{got}: an encoder only", rule, f"Save the whole model, as {class_name}.")
        return self._wrong(got, rule)

    def _is_known(self, name: str) -> bool:
        architecture = self.architecture
        return name == HEAD or name in architecture.copies or name.endswith(architecture.ignored or "\0")

    def _check_copies(self, opened: Mapping[Path, Any], parts: Iterable[Part]) -> None:
        """Refuse copies of the embedding that differ from it."""
        embedding = self._source(self.architecture.embedding)
        own_head = any(part.ours == ("head.weight",) for part in parts)
        for name in sorted(({*self.architecture.copies} | {HEAD}) & self.tensors.keys()):
            if name == HEAD and own_head:
                continue
            keys = (self.tensors[embedding], self.tensors[name])
            one, other = (opened[self.files[key]].get_tensor(key) for key in keys)
            if not torch.equal(one, other):
                raise self._wrong(
                    f"different values in {name} and {embedding}",
                    "must have equal values, because tie_word_embeddings is set"
                    if name == HEAD
                    else "must have the same embedding in encoder and decoder",
                )

    def _wrong(self, got: str, rule: str, remedy: str | None = None) -> HubError:
        return HubError(
            f"Hugging Face folder {self.path}",
            got=got,
            rule=rule,
            remedy=remedy or "Restore its files, or save the model again.",
        )


def _first_name(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]}, and {len(names) - 1} more"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_small(path))
    except (OSError, ReadError) as error:
        raise HubError(
            str(path),
            got=getattr(error, "strerror", None) or f"invalid JSON ({getattr(error, 'got', error)})",
            rule="must be a readable JSON object",
            remedy="Check the path: a Hugging Face folder has a config.json and .safetensors files.",
        ) from error
    return content if isinstance(content, dict) else {}


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
