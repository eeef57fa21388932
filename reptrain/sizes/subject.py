"""The subject of a size computation: a model, its run if it has one, and the shape of its window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reptrain.config.base import Frozen
from reptrain.config.load import apply_overrides, read_config, validate
from reptrain.config.model import ModelConfig
from reptrain.config.objectives import ExampleShape
from reptrain.config.schema import RunConfig
from reptrain.config.vit import VitConfig
from reptrain.errors import ConfigError
from reptrain.sizes.flops import ForwardFlops, forward_flops
from reptrain.sizes.layers import CountableConfig
from reptrain.sizes.parameters import ParameterCount, count_parameters, embedding_rows
from reptrain.store.manifest import MANIFEST, read_manifest
from reptrain.store.remote import local_folder

_NO_STORE = "(none)"


class _VitFile(Frozen):
    """The file of a vision transformer."""

    name: str | None = None
    model: VitConfig


@dataclass(frozen=True)
class Subject:
    """A model and its run."""

    data: Mapping[str, Any]
    """The file with its overrides."""
    model: CountableConfig
    run: RunConfig | None
    """None for a vision transformer, which cannot be trained."""
    vocab_size: int
    shape: ExampleShape
    window_tokens: int
    """Raw tokens of the window."""

    @property
    def parameters(self) -> ParameterCount:
        """The model's parameters."""
        return count_parameters(self.model, self.vocab_size)

    @property
    def forward(self) -> ForwardFlops:
        """FLOPs of the forward pass for one window."""
        return forward_flops(self.model, self.vocab_size, self.shape)


def load_subject(path: Path, overrides: Sequence[str] = (), *, vocab_size: int | None = None) -> Subject:
    """Read the file of a run, or of a model alone; the store need not exist.

    Args:
        path: The YAML file.
        overrides: ``key=value`` texts.
        vocab_size: Vocabulary size, if neither the model nor a store gives it.

    Raises:
        ConfigError: If the file is invalid, or the vocabulary size is unknown.
    """
    return subject_of(apply_overrides(read_config(path), overrides), vocab_size)


def subject_of(data: Mapping[str, Any], vocab_size: int | None) -> Subject:
    """The subject of a file's mapping."""
    section = data.get("model")
    family = section.get("family") if isinstance(section, Mapping) else None
    if family == "vit":
        model = validate(_VitFile, data).model
        tokens = model.image.num_tokens
        return Subject(data, model, None, 0, ExampleShape(0, tokens), tokens)
    run = validate(RunConfig, _filled(data, family))
    ids = _store_vocab_size(run) or vocab_size or run.model.vocab_size
    if ids is None:
        raise ConfigError(
            "model.vocab_size",
            got=f"nothing, and no store at {next(iter(run.sources.values())).store}",
            rule="must be known to size the embedding",
            remedy="Set model.vocab_size=N, name an existing store, or pass --vocab-size N.",
        )
    rows = embedding_rows(run.model, ids)
    return Subject(data, run.model, run, rows, run.example_shape, run.window_tokens)


def _filled(data: Mapping[str, Any], family: object) -> dict[str, Any]:
    """A file with a model alone, completed to a run."""
    filled, section = dict(data), data.get("data", {})
    if isinstance(section, Mapping) and not section.keys() & {"store", "sources"}:
        filled["data"] = {**section, "store": _NO_STORE}
    if family == "t5":
        filled.setdefault("objective", {"name": "span_corruption"})
    return filled


def _store_vocab_size(run: RunConfig) -> int | None:
    """Vocabulary size of the first source's store that exists."""
    for source in run.sources.values():
        if (local_folder(source.store) / MANIFEST).exists():
            return read_manifest(local_folder(source.store)).vocab_size
    return None


def trainable(subject: Subject, name: str) -> tuple[RunConfig, ModelConfig]:
    """The run and its model.

    Raises:
        ConfigError: If the model can only be counted.
    """
    if subject.run is None:
        raise ConfigError(
            f"model.family of {name}",
            got="vit",
            rule="must be decoder or t5",
            remedy="A vision transformer cannot be trained. `reptrain sizes` and `match --to` accept it.",
        )
    return subject.run, subject.run.model
