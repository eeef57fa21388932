"""Models out to Hugging Face folders, and in from them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from reptrain.checkpoint import CheckpointManifest, Topology
from reptrain.checkpoint.state import WEIGHT, Piece
from reptrain.checkpoint.state_files import write_pieces
from reptrain.config.load import dump_yaml
from reptrain.config.model import DecoderConfig, ModelConfig, T5Config
from reptrain.errors import RunError, check_choice
from reptrain.files import write_atomically
from reptrain.hub import ModelFolder, model_settings, save_model
from reptrain.hub.saved_model import MODEL_FILE, ImportedModel, TrainedModel, open_trained
from reptrain.hub.tokenizer_files import SpecialIds, write_tokenizer
from reptrain.runs.parent import Parent
from reptrain.sizes import count_parameters
from reptrain.text import Tokenizer

MAX_SHARD_BYTES = 5_000_000_000


class Exchanged(NamedTuple):
    """What `export_model` and `import_model` wrote."""

    path: Path
    """The new folder."""
    source: Path
    """What was read."""
    model_type: str
    """As transformers calls it."""
    parameters: int
    """Of our model; a shared layer counts once."""
    step: int | None
    """Steps of the run that made it."""

    def text(self) -> str:
        """In words."""
        step = "" if self.step is None else f" at step {self.step}"
        return f"{self.path}: {self.model_type}, {self.parameters:,} parameters, from {self.source}{step}"

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict() | {"path": str(self.path), "source": str(self.source)}


def export_model(
    run: Path,
    out: Path,
    *,
    step: int | None = None,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    tokenizer: Path | None = None,
    average: bool = False,
) -> Exchanged:
    """Write a model as a Hugging Face folder, which `from_pretrained` of transformers reads.

    A model with shared layers becomes one with as many copies of them as run: the same function. Sparse
    layers with a capacity become ones without.

    Args:
        run: A run folder, one of its checkpoints, or an imported model.
        out: The folder to make.
        step: Whose checkpoint; None takes the newest that is whole.
        dtype: Of the weights.
        max_shard_bytes: A file holds more only where one tensor does.
        tokenizer: Its file, where the run's store has gone.
        average: Of a run that keeps one, the average of the weights in their place.

    Raises:
        ReptrainError: If there is no such checkpoint, transformers has no such model, or ``out`` is in use.
    """
    check_choice("dtype", dtype, ("fp32", "bf16", "fp16"))
    trained = open_trained(run, step, average=average)
    _refuse_bidirectional(trained)
    settings = model_settings(trained.config, rows=trained.rows)
    pieces = trained.tokenizer(tokenizer)
    special = trained.special_ids(pieces)
    ids, pad = _special_settings(trained.config, special, pieces.pad_id)
    with _whole_folder(out) as folder:
        write_tokenizer(
            pieces, folder, special=special, is_encoder_decoder=isinstance(trained.config, T5Config)
        )
        write_atomically(folder / "generation_config.json", json.dumps(ids | pad, indent=2) + "\n")
        weights = dict(trained.load().named_parameters())
        save_model(
            folder,
            trained.config,
            weights,
            settings | ids | (pad if trained.config.family == "t5" else {}) | _lengths(trained),
            max_shard_bytes=max_shard_bytes,
            dtype=dtype,
        )
    return _done(out, run, settings["model_type"], trained)


def _refuse_bidirectional(trained: TrainedModel) -> None:
    """The decoders of transformers read forwards only."""
    if isinstance(trained.config, DecoderConfig) and trained.reading != "causal":
        raise RunError(
            f"objective of {trained.path}",
            got="one under which the decoder reads its inputs both ways",
            rule="must read forwards only, as the decoders of transformers do",
            remedy="Use the model from its run folder.",
        )


def _done(path: Path, source: Path, model_type: str, trained: TrainedModel) -> Exchanged:
    total = count_parameters(trained.config, trained.rows).total
    return Exchanged(path, source, model_type, total, trained.step)


def _special_settings(
    config: ModelConfig, special: SpecialIds, pad_id: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ids that begin and end a text, and the padding, as transformers names them.

    A decoder is padded with what ends a text, as GPT-2 is, and only when it generates: without an
    attention mask, transformers masks padding of any other id in the prompt, which would hide our start
    token, and it does not train the embedding of the padding that config.json names.
    """
    end = special.ends[0] if special.ends else None
    ids: dict[str, Any] = {"eos_token_id": end if len(special.ends) == 1 else list(special.ends) or None}
    if isinstance(config, T5Config):
        pad = pad_id if pad_id >= 0 else special.start
        return ids | {"decoder_start_token_id": special.start}, {"pad_token_id": pad}
    return ids | {"bos_token_id": special.start}, {"pad_token_id": end}


def _lengths(trained: TrainedModel) -> dict[str, Any]:
    """How long a text may be, where transformers asks: as long as the run's windows."""
    if isinstance(trained.config, T5Config) or trained.window_tokens is None:
        return {}
    if trained.config.max_positions is not None:
        return {}
    return {"max_position_embeddings": trained.window_tokens}


def import_model(source: Path, out: Path) -> Exchanged:
    """Take a Hugging Face folder in: its weights as a checkpoint, its tokenizer, and where it came from.

    What it makes can be generated from, exported, and continued (`init_from`).

    Args:
        source: The folder.
        out: The folder to make.

    Raises:
        ReptrainError: If the folder is not whole or of a model that we do not have, or ``out`` is in use.
    """
    opened = ModelFolder.open(source)
    trained = open_trained(source)
    model = trained.load()
    tokenizer = trained.own_tokenizer()
    special = opened.special_ids() if tokenizer is None else trained.special_ids(tokenizer)
    with _whole_folder(out) as folder:
        described = ImportedModel(
            model=opened.config,
            start_id=special.start,
            end_ids=list(special.ends),
            window_tokens=trained.window_tokens,
        )
        write_model(folder, described, tokenizer, model)
        Parent(path=str(source.resolve()), step=None, weights=trained.fingerprint()).write(folder)
    return _done(out, source, opened.architecture.model_type, trained)


def write_model(
    folder: Path, described: ImportedModel, tokenizer: Tokenizer | None, model: torch.nn.Module
) -> None:
    """Write a model as an imported one lies (see `reptrain.hub.saved_model`).

    Args:
        folder: Where; made if it is not there.
        described: What model.yaml says.
        tokenizer: Its tokenizer, where it has one.
        model: Its weights, as step 0.
    """
    folder.mkdir(exist_ok=True)
    if tokenizer is not None:
        write_atomically(folder / tokenizer.file_name, tokenizer.model_bytes)
    _write_checkpoint(folder / "checkpoints", dict(model.named_parameters()))
    # Last: a folder with this file is whole.
    text = dump_yaml(described.model_dump(mode="json"))
    write_atomically(folder / MODEL_FILE, f"# Imported by reptrain.\n{text}")


def _write_checkpoint(folder: Path, weights: dict[str, Any]) -> None:
    place = folder / "step-0"
    place.mkdir(parents=True)
    name = "state-00000-of-00001.safetensors"
    held = [Piece(key, 0, {WEIGHT: value.detach().view(-1)}) for key, value in weights.items()]
    manifest = CheckpointManifest(
        step=0,
        optimizer_steps=0,
        writers=Topology(world_size=1, zero_stage=0),
        loss_scaling={},
        parameters={key: list(value.shape) for key, value in weights.items()},
        files={name: write_pieces(place / name, held)},
        records={},
    )
    write_atomically(place / "manifest.json", manifest.text())
    write_atomically(folder / "latest", "step-0\n")


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder under a temporary name, which takes its place when all went well."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            f"folder {out}",
            got="files there",
            rule="must be new or empty",
            remedy="Choose another, or remove it.",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
