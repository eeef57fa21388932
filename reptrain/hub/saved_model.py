"""Models that were trained, here or elsewhere: opened from a run, a checkpoint, an import, or a Hugging Face
folder, without DeepSpeed.

An imported model is a folder like a run's, without plan and records:

    model.yaml             the model, and the ids that begin and end a text
    tokenizer.model, .json the tokenizer, where it came with one
    parent.json            where it came from
    checkpoints/step-0/    its weights, as a run keeps them

A fine-tuned model is such a folder too, with checkpoints of several steps.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from pydantic import Field, ValidationError

from reptrain import checkpoint
from reptrain.checkpoint import CheckpointManifest
from reptrain.checkpoint.state import WEIGHT, Piece
from reptrain.checkpoint.state_files import read_pieces
from reptrain.checkpoint.weight_average import AVERAGE
from reptrain.config.base import Frozen
from reptrain.config.load import read_yaml, validate
from reptrain.config.model import DecoderConfig, ModelConfig
from reptrain.config.objectives import Reading
from reptrain.distributed.world import World
from reptrain.errors import ReptrainError, ResumeError, RunError, TokenizerError
from reptrain.hub import ModelFolder
from reptrain.hub.folder import CONFIG
from reptrain.hub.tokenizer_files import SpecialIds, read_tokenizer, special_ids
from reptrain.model import Decoder, EncoderDecoder
from reptrain.model.init import empty_model, parameter_shapes
from reptrain.runs.folder import RunFolder
from reptrain.store import open_store
from reptrain.text import Tokenizer
from reptrain.text.ends import NamedEnd, find_end

_ALONE = World(0, 1, 0, torch.device("cpu"))
MODEL_FILE = "model.yaml"


class ImportedModel(Frozen):
    """`model.yaml`."""

    model: ModelConfig
    """The model; `vocab_size` is set."""
    start_id: int | None
    """What a decoder reads before the first token; null: nothing."""
    end_ids: list[int] = Field(default_factory=list)
    """After any of these, a text is over."""
    window_tokens: int | None = None
    """Positions that it is meant for, where it says so."""
    reading: Reading | None = None
    """How it reads a prompt; null: as its family does."""


class TrainedModel(ABC):
    """A model with its weights.

    Args:
        path: Where it was opened.
        config: The model; `vocab_size` is set.
        step: Steps of the run that made it; None where there was none.
        window_tokens: Positions that it was trained with or is meant for; None where that is not known.
    """

    def __init__(
        self, path: Path, config: ModelConfig, *, step: int | None, window_tokens: int | None
    ) -> None:
        self.path, self.config, self.step, self.window_tokens = path, config, step, window_tokens

    @abstractmethod
    def fingerprint(self) -> str:
        """Of the weights; in a Hugging Face folder that reads them all."""

    @abstractmethod
    def own_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that it was trained with; None where none is known.

        Raises:
            ReptrainError: If it should be there and cannot be read.
        """

    @abstractmethod
    def special_ids(self, tokenizer: Tokenizer) -> SpecialIds:
        """What begins and ends a text."""

    def named_end(self) -> NamedEnd | None:
        """The end of a text that its folder names; None where another file of its tokenizer is to tell it."""
        return None

    @abstractmethod
    def fill(self, model: Decoder | EncoderDecoder) -> None:
        """Read the weights into a model of `config`, on the CPU in fp32.

        Raises:
            ReptrainError: If they are not whole.
        """

    @abstractmethod
    def check(self) -> None:
        """Hold what the files say of their weights against the model, before there is memory for it.

        Raises:
            ReptrainError: If they have other shapes.
        """

    @property
    def reading(self) -> Reading:
        """How it reads a prompt."""
        return "causal" if isinstance(self.config, DecoderConfig) else "inputs"

    @property
    def rows(self) -> int:
        """Of the embedding."""
        assert self.config.vocab_size is not None
        return self.config.vocab_size

    def load(self, config: ModelConfig | None = None) -> Decoder | EncoderDecoder:
        """The model in evaluation mode, on the CPU in fp32.

        Experts that were trained by MegaBlocks, which wants CUDA, are multiplied by torch.

        Args:
            config: What is built, where it differs in what has no weights; None: `config`.
        """
        self.check()
        model = empty_model(_by_torch(config or self.config), vocab_size=self.rows)
        self.fill(model)
        return model.eval()

    def tokenizer(self, path: Path | None = None) -> Tokenizer:
        """Its tokenizer, or another file of the same.

        Args:
            path: The file; None takes its own.

        Raises:
            TokenizerError: If there is none, or one of more ids than the embedding has rows.
        """
        try:
            tokenizer = self.own_tokenizer() if path is None else Tokenizer.load(path, self.named_end())
        except ReptrainError as error:
            raise TokenizerError(
                f"tokenizer of {self.path}",
                got=str(error.got),
                rule=f"must be there: {error.what} {error.rule}",
                remedy="Name its file with --tokenizer.",
            ) from error
        if tokenizer is None:
            raise TokenizerError(
                f"tokenizer of {self.path}",
                got="no file of one",
                rule="must be there",
                remedy="Name its file with --tokenizer.",
            )
        if tokenizer.vocab_size > self.rows:
            raise TokenizerError(
                f"tokenizer of {self.path}",
                got=f"{tokenizer.vocab_size} ids",
                rule=f"must have at most as many as the embedding has rows, {self.rows}",
                remedy="Name the one that the model was trained with.",
            )
        return tokenizer


class _Checkpointed(TrainedModel):
    """Its weights lie in a checkpoint of ours."""

    kind = WEIGHT
    """Which of what is kept of each weight."""

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
            raise _wrong(place, f"an embedding of {rows} rows", "must have one")
        config = config.model_copy(update={"vocab_size": rows})
        super().__init__(path, config, step=manifest.step, window_tokens=window_tokens)
        self._place, self._manifest = place, manifest

    def fingerprint(self) -> str:
        """Of the weights: of what the checkpoint's manifest says of its files."""
        text = " ".join(f"{name} {file.sha256}" for name, file in sorted(self._manifest.files.items()))
        if self.kind != WEIGHT:
            text += f" {self.kind}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def check(self) -> None:
        shapes = parameter_shapes(self.config, vocab_size=self.rows)
        for name in sorted(shapes.keys() | self._manifest.parameters.keys()):
            here, there = shapes.get(name), self._manifest.parameters.get(name)
            if here is None or there is None or list(here) != there:
                raise _wrong(
                    self.path,
                    f"{name} of shape {there} in {self._place.name}",
                    f"must hold the weights of its configuration, of shape {here and list(here)}",
                )

    def fill(self, model: Decoder | EncoderDecoder) -> None:
        """Read the weights and the routers' votes; see `TrainedModel.fill`."""
        weights = model.state_dict(keep_vars=True)
        wanted = [Piece(name, 0, {self.kind: p.detach().view(-1)}) for name, p in model.named_parameters()]
        read_pieces([self._place / name for name in self._manifest.files], wanted)
        for name, votes in self._manifest.votes.items():
            if name in weights:
                weights[name].copy_(torch.tensor(votes))


class _RunModel(_Checkpointed):
    def __init__(
        self, path: Path, folder: RunFolder, place: Path, manifest: CheckpointManifest, *, average: bool
    ) -> None:
        run = folder.config
        super().__init__(path, run.model, place, manifest, run.window_tokens)
        self._folder, self._run = folder, run
        if average:
            if run.average is None:
                raise _no_average(path, "keeps no average")
            self.kind = AVERAGE

    @property
    def reading(self) -> Reading:
        """How it reads a prompt: as its objective trained it."""
        return self._run.objective.reading(self.config.family)

    def own_tokenizer(self) -> Tokenizer:
        # The plan has the store's absolute path.
        return open_store(Path(self._folder.plan.sources[0].store)).tokenizer()

    def special_ids(self, tokenizer: Tokenizer) -> SpecialIds:
        return special_ids(tokenizer)

    def named_end(self) -> NamedEnd | None:
        path = Path(next(iter(self._run.sources.values())).store)
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
        """How it reads a prompt: as `model.yaml` says, or its family does."""
        return self._reading or super().reading

    def own_tokenizer(self) -> Tokenizer | None:
        return read_tokenizer(self.path)

    def special_ids(self, tokenizer: Tokenizer) -> SpecialIds:
        return self._special

    def named_end(self) -> NamedEnd | None:
        return find_end(self.path)


class _FolderModel(TrainedModel):
    def __init__(self, path: Path) -> None:
        self._folder = ModelFolder.open(path)
        super().__init__(
            path,
            self._folder.config,
            step=None,
            window_tokens=self._folder.window_tokens,
        )

    def fingerprint(self) -> str:
        """Of the weights: of the files that hold them."""
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
        # Its tokenizer_config.json alone names it.
        return special._replace(ends=(tokenizer.eos_id,))

    def named_end(self) -> NamedEnd | None:
        return find_end(self.path)

    def check(self) -> None:
        self._folder.check_names()
        self._folder.check(parameter_shapes(self.config, vocab_size=self.rows))

    def fill(self, model: Decoder | EncoderDecoder) -> None:
        self._folder.load(dict(model.named_parameters()))


def open_trained(path: Path, step: int | None = None, *, average: bool = False) -> TrainedModel:
    """Open a model that was trained.

    Args:
        path: A run folder, one of its checkpoints, an imported model, or a Hugging Face folder.
        step: Of a run, whose checkpoint; None takes the newest that is whole.
        average: Of a run that keeps one, the average of the weights in their place.

    Raises:
        ReptrainError: If there is none, or none that is whole.
    """
    number = path.name.removeprefix("step-")
    if path.parent.name == "checkpoints" and number != path.name and number.isdecimal() and step is None:
        path, step = path.parent.parent, int(number)
    if average and not (path / "plan.json").exists():
        raise _no_average(path, "is no run")
    if (path / CONFIG).exists() and not (path / "checkpoints").exists():
        if step is not None:
            raise _wrong(path, f"step {step} of a Hugging Face folder", "has one set of weights")
        return _FolderModel(path)
    if (path / MODEL_FILE).exists():
        imported = validate(ImportedModel, read_yaml(path / MODEL_FILE))
        return _Imported(path, imported, *_checkpoint(path, step))
    if (path / "plan.json").exists():
        return _RunModel(path, RunFolder.open(path), *_checkpoint(path, step), average=average)
    raise _wrong(path, f"no plan.json, {MODEL_FILE} or {CONFIG} there", "must be the folder of a model")


def _checkpoint(path: Path, step: int | None) -> tuple[Path, CheckpointManifest]:
    folder = path / "checkpoints"
    if step is None:
        found = checkpoint.find(folder, world=_ALONE)
        if found.path is None or found.manifest is None:
            raise _wrong(path, "no checkpoint there yet", "must have a checkpoint")
        return found.path, found.manifest
    place = folder / f"step-{step}"
    try:
        manifest = CheckpointManifest.read(place)
        problems = (expected.problem(place / name) for name, expected in manifest.files.items())
        problem = next((text for text in problems if text), None)
    except ResumeError:
        raise
    except (OSError, ValueError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    if problem is not None:
        kept = ", ".join(sorted(found.name for found in folder.glob("step-*")))
        raise _wrong(place, problem, f"must be a whole checkpoint (there are {kept or 'none'})")
    return place, manifest


def _no_average(path: Path, got: str) -> RunError:
    return RunError(
        f"average of {path}",
        got=f"one that {got}",
        rule="needs a run that keeps an average of its weights",
        remedy="Leave --average out, or train with the setting average.",
    )


def _wrong(path: Path, got: str, rule: str) -> RunError:
    return RunError(
        f"model {path}",
        got=got,
        rule=rule,
        remedy="Name a run folder, one of its checkpoints, or a Hugging Face folder.",
    )


def _by_torch(config: ModelConfig) -> ModelConfig:
    """The model with experts that any machine multiplies."""
    if config.moe is None or config.moe.backend != "megablocks":
        return config
    # Not grouped, which not every width fits.
    return config.model_copy(update={"moe": config.moe.model_copy(update={"backend": "loop"})})
