"""Saved models: opened from a run, a checkpoint, an imported model or a Hugging Face folder, without
DeepSpeed.

The folder of an imported model is like a run folder without plan and records:

    model.yaml             configuration of the model, start and end ids of a text
    tokenizer.model, .json the tokenizer, if it came with one
    parent.json            the folder it was imported from
    checkpoints/step-0/    the weights, in the checkpoint format of a run

A fine-tuned model has the same layout, with checkpoints of several steps.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from reptrain.checkpoint import CheckpointManifest
from reptrain.checkpoint.state import WEIGHT, Piece, set_expert_bias
from reptrain.checkpoint.state_files import StateFiles
from reptrain.checkpoint.weight_average import AVERAGE
from reptrain.config.model import DecoderConfig, ModelConfig
from reptrain.config.objectives import Reading
from reptrain.errors import ReptrainError, TokenizerError
from reptrain.hub import ModelFolder
from reptrain.hub.checkpoint_folder import intact_checkpoint, no_average, wrong_model
from reptrain.hub.folder import CONFIG
from reptrain.hub.imported_model import MODEL_FILE, ImportedModel
from reptrain.hub.parts import Part
from reptrain.hub.tokenizer_files import SpecialIds, read_tokenizer, special_ids
from reptrain.model import Decoder, EncoderDecoder
from reptrain.model.init import empty_model, meta_model, parameter_shapes
from reptrain.runs.folder import RunFolder
from reptrain.store import local_folder, open_store
from reptrain.text import Tokenizer, load_tokenizer
from reptrain.text.ends import NamedEnd, find_end


class SavedModel(ABC):
    """A model with its weights.

    Args:
        path: Folder of the model.
        config: Configuration of the model; `vocab_size` is set.
        step: Completed steps of its run; None without a run.
        window_tokens: Number of positions that it was trained with or made for; None if unknown.
    """

    def __init__(
        self, path: Path, config: ModelConfig, *, step: int | None, window_tokens: int | None
    ) -> None:
        self.path, self.config, self.step, self.window_tokens = path, config, step, window_tokens

    @abstractmethod
    def fingerprint(self) -> str:
        """Fingerprint of the weights. For a Hugging Face folder this reads all of them."""

    @abstractmethod
    def own_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the model was trained with; None if unknown.

        Raises:
            ReptrainError: If the tokenizer cannot be read.
        """

    @abstractmethod
    def special_ids(self, tokenizer: Tokenizer) -> SpecialIds:
        """Start and end ids of a text."""

    def named_end(self) -> NamedEnd | None:
        """The end of a text that the folder names; None if the tokenizer's file has to name it."""
        return None

    @abstractmethod
    def read(self, weights: Mapping[str, Tensor]) -> None:
        """Load some of the parameters.

        Args:
            weights: fp32 on the CPU by parameter name, filled in place.

        Raises:
            ReptrainError: If one of them is missing.
        """

    @abstractmethod
    def fill_buffers(self, model: Decoder | EncoderDecoder) -> None:
        """Load what a model holds besides its parameters: the expert bias, if the weights come with one."""

    def fill(self, model: Decoder | EncoderDecoder) -> None:
        """Load the weights into a model of `config`, on the CPU in fp32.

        Raises:
            ReptrainError: If weights are missing.
        """
        self.read({name: parameter.detach() for name, parameter in model.named_parameters()})
        self.fill_buffers(model)

    @abstractmethod
    def check(self) -> None:
        """Compare the shapes in the files with the model, before memory is allocated for it.

        Raises:
            ReptrainError: If they differ.
        """

    @property
    def reading(self) -> Reading:
        """How the model treats a prompt."""
        return "causal" if isinstance(self.config, DecoderConfig) else "inputs"

    @property
    def ledger(self) -> Path | None:
        """Copy of its run's ledger up to its step; None without a run."""
        return None

    @property
    def rows(self) -> int:
        """Rows of the embedding."""
        assert self.config.vocab_size is not None
        return self.config.vocab_size

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by name."""
        return parameter_shapes(self.config, vocab_size=self.rows)

    def parameter(self, name: str, expert: int | None = None) -> Tensor:
        """Load one parameter, fp32 on the CPU.

        Args:
            name: Its name.
            expert: Load only the slice of this expert, the first dimension's index.
        """
        whole = torch.empty(self.shapes[name])
        self.read({name: whole})
        return whole if expert is None else whole[expert]

    def load(self, config: ModelConfig | None = None) -> Decoder | EncoderDecoder:
        """Load the model in evaluation mode, on the CPU in fp32.

        The experts use torch instead of MegaBlocks, which requires CUDA.

        Args:
            config: Configuration to build, with the same weights as `config`; None: `config`.
        """
        self.check()
        model = empty_model(_without_megablocks(config or self.config), vocab_size=self.rows)
        self.fill(model)
        return model.eval()

    def on_meta(self, config: ModelConfig | None = None) -> Decoder | EncoderDecoder:
        """The model of `load` on the meta device, to be filled by `read` one parameter at a time.

        Args:
            config: See `load`.
        """
        self.check()
        return meta_model(_without_megablocks(config or self.config), vocab_size=self.rows)

    def tokenizer(self, path: Path | None = None) -> Tokenizer:
        """The model's tokenizer.

        Args:
            path: A file of the same tokenizer; None: the model's own.

        Raises:
            TokenizerError: If there is none, or it has more ids than the embedding has rows.
        """
        try:
            tokenizer = self.own_tokenizer() if path is None else load_tokenizer(path, self.named_end())
        except ReptrainError as error:
            raise TokenizerError(
                f"tokenizer of {self.path}",
                got=error.got,
                rule=f"must be available: {error.what} {error.rule}",
                remedy="Pass its file by --tokenizer.",
            ) from error
        if tokenizer is None:
            raise TokenizerError(
                f"tokenizer of {self.path}",
                got="no tokenizer file",
                rule="must be available",
                remedy="Pass its file by --tokenizer.",
            )
        if tokenizer.vocab_size > self.rows:
            raise TokenizerError(
                f"tokenizer of {self.path}",
                got=f"{tokenizer.vocab_size} ids",
                rule=f"must have at most {self.rows} ids, the rows of the embedding",
                remedy="Pass the tokenizer that the model was trained with.",
            )
        return tokenizer


class _Checkpointed(SavedModel):
    """A model whose weights are in a checkpoint of reptrain."""

    kind = WEIGHT
    """Kind of the pieces to load: the weights or their average."""

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        place: Path,
        manifest: CheckpointManifest,
        window_tokens: int | None,
    ) -> None:
        rows = manifest.parameters.get("embedding.weight", [0])[0]
        if rows < 1:
            raise wrong_model(place, f"an embedding of {rows} rows", "must have an embedding")
        config = config.model_copy(update={"vocab_size": rows})
        super().__init__(path, config, step=manifest.step, window_tokens=window_tokens)
        self._place, self._manifest = place, manifest

    def fingerprint(self) -> str:
        """Fingerprint of the weights, from the checksums in the checkpoint's manifest."""
        text = " ".join(f"{name} {file.sha256}" for name, file in sorted(self._manifest.files.items()))
        if self.kind != WEIGHT:
            text += f" {self.kind}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def check(self) -> None:
        shapes = self.shapes
        for name in sorted(shapes.keys() | self._manifest.parameters.keys()):
            expected, stored = shapes.get(name), self._manifest.parameters.get(name)
            if expected is None or stored is None or list(expected) != stored:
                raise wrong_model(
                    self.path,
                    f"{name} of shape {stored} in {self._place.name}",
                    f"must hold the weights of its configuration, of shape {expected and list(expected)}",
                )

    def read(self, weights: Mapping[str, Tensor]) -> None:
        self._files.read([Piece(name, 0, {self.kind: values.view(-1)}) for name, values in weights.items()])

    def parameter(self, name: str, expert: int | None = None) -> Tensor:
        if expert is None:
            return super().parameter(name)
        values = torch.empty(self.shapes[name][1:])
        self._files.read([Piece(name, expert * values.numel(), {self.kind: values.view(-1)})])
        return values

    @cached_property
    def _files(self) -> StateFiles:
        return StateFiles([self._place / name for name in self._manifest.files])

    def fill_buffers(self, model: Decoder | EncoderDecoder) -> None:
        set_expert_bias(model, self._manifest.expert_bias)


class _RunModel(_Checkpointed):
    def __init__(
        self, path: Path, folder: RunFolder, place: Path, manifest: CheckpointManifest, *, average: bool
    ) -> None:
        run = folder.config
        super().__init__(path, run.model, place, manifest, run.window_tokens)
        self._folder, self._run = folder, run
        if average:
            if run.average is None:
                raise no_average(path, "a run that keeps no average")
            self.kind = AVERAGE

    @property
    def reading(self) -> Reading:
        """How the model treats a prompt, by its objective."""
        return self._run.objective.reading(self.config.family)

    @property
    def ledger(self) -> Path:
        return self._place / "ledger.jsonl"

    def own_tokenizer(self) -> Tokenizer:
        # The plan holds the store's absolute path.
        return open_store(self._folder.plan.sources[0].store).tokenizer()

    def special_ids(self, tokenizer: Tokenizer) -> SpecialIds:
        return special_ids(tokenizer)

    def named_end(self) -> NamedEnd | None:
        path = local_folder(next(iter(self._run.sources.values())).store)
        return find_end(path) if path.is_dir() else None


class _Imported(_Checkpointed):
    def __init__(
        self, path: Path, imported: ImportedModel, place: Path, manifest: CheckpointManifest
    ) -> None:
        super().__init__(path, imported.model, place, manifest, imported.window_tokens)
        self._special = SpecialIds(imported.start_id, tuple(imported.end_ids))
        self._reading = imported.reading

    @property
    def reading(self) -> Reading:
        """How the model treats a prompt, by `model.yaml` or else by its family."""
        return self._reading or super().reading

    def own_tokenizer(self) -> Tokenizer | None:
        return read_tokenizer(self.path)

    def special_ids(self, tokenizer: Tokenizer) -> SpecialIds:
        return self._special

    def named_end(self) -> NamedEnd | None:
        return find_end(self.path)


class _FolderModel(SavedModel):
    def __init__(self, path: Path) -> None:
        self._folder = ModelFolder.open(path)
        super().__init__(
            path,
            self._folder.config,
            step=None,
            window_tokens=self._folder.window_tokens,
        )

    def fingerprint(self) -> str:
        """Fingerprint of the weights, from the files that hold them."""
        digest = hashlib.sha256()
        for path in sorted(set(self._folder.files.values())):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:32]

    def own_tokenizer(self) -> Tokenizer | None:
        return read_tokenizer(self.path)

    def special_ids(self, tokenizer: Tokenizer) -> SpecialIds:
        special = self._folder.special_ids()
        if special.ends or tokenizer.eos_id < 0 or self.named_end() is None:
            return special
        # Only tokenizer_config.json names the end.
        return special._replace(ends=(tokenizer.eos_id,))

    def named_end(self) -> NamedEnd | None:
        return find_end(self.path)

    def check(self) -> None:
        self._folder.check_names()
        self._folder.check(self.shapes)

    def read(self, weights: Mapping[str, Tensor]) -> None:
        self._folder.load(weights, self.shapes, self._parts)

    def fill_buffers(self, model: Decoder | EncoderDecoder) -> None:
        """Nothing: the architectures of transformers have no expert bias."""

    @cached_property
    def _parts(self) -> list[Part]:
        return self._folder.check(self.shapes)


def open_saved_model(path: Path, step: int | None = None, *, average: bool = False) -> SavedModel:
    """Open a saved model.

    Args:
        path: A run folder, one of its checkpoints, an imported model, or a Hugging Face folder.
        step: Step of the checkpoint; None: the newest intact one.
        average: Use the average of the weights, if the run keeps one.

    Raises:
        ReptrainError: If there is no model, or no intact checkpoint.
    """
    number = path.name.removeprefix("step-")
    if path.parent.name == "checkpoints" and number != path.name and number.isdecimal() and step is None:
        path, step = path.parent.parent, int(number)
    if average and not (path / "plan.json").exists():
        raise no_average(path, "a folder that is not a run")
    if (path / CONFIG).exists() and not (path / "checkpoints").exists():
        if step is not None:
            raise wrong_model(path, f"step {step} of a Hugging Face folder", "must be opened without a step")
        return _FolderModel(path)
    if (path / MODEL_FILE).exists():
        return _Imported(path, ImportedModel.read(path), *intact_checkpoint(path, step))
    if (path / "plan.json").exists():
        return _RunModel(path, RunFolder.open(path), *intact_checkpoint(path, step), average=average)
    raise wrong_model(path, f"no plan.json, {MODEL_FILE} or {CONFIG}", "must be the folder of a model")


def _without_megablocks(config: ModelConfig) -> ModelConfig:
    """The configuration with an expert backend that runs on any machine."""
    if config.moe is None or config.moe.backend != "megablocks":
        return config
    # Not grouped, which restricts the widths.
    return config.model_copy(update={"moe": config.moe.model_copy(update={"backend": "loop"})})
