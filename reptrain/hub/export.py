"""Export to and import from Hugging Face folders."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from reptrain.checkpoint import CheckpointManifest, Topology
from reptrain.checkpoint.state import WEIGHT
from reptrain.checkpoint.tensor_file import StoredTensor, write_tensors
from reptrain.config.model import DecoderConfig, ModelConfig, T5Config
from reptrain.errors import RunError, check_choice
from reptrain.files import write_atomically
from reptrain.hub import ModelFolder, model_settings, save_model
from reptrain.hub.imported_model import ImportedModel
from reptrain.hub.saved_model import SavedModel, open_saved_model
from reptrain.hub.tokenizer_files import SpecialIds, write_tokenizer
from reptrain.runs.parent import Parent
from reptrain.sizes import count_parameters
from reptrain.text import Tokenizer

MAX_SHARD_BYTES = 5_000_000_000


class Exchanged(NamedTuple):
    """Result of `export_model` and `import_model`."""

    path: Path
    """The folder that was written."""
    source: Path
    """The folder that was read."""
    model_type: str
    """The model type in transformers."""
    parameters: int
    """Number of parameters; a shared layer counts once."""
    step: int | None
    """Completed steps of the run."""

    def text(self) -> str:
        """The result as one line."""
        step = "" if self.step is None else f" at step {self.step}"
        return f"{self.path}: {self.model_type}, {self.parameters:,} parameters, from {self.source}{step}"

    def data(self) -> dict[str, Any]:
        """The result as JSON values."""
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
    """Write a model as a Hugging Face folder for `from_pretrained` of transformers.

    Shared layers are copied to each layer that uses them; the function stays the same. Sparse layers lose
    their capacity limit.

    Args:
        run: A run folder, one of its checkpoints, or an imported model.
        out: The folder to create.
        step: Step of the checkpoint; None: the newest intact one.
        dtype: dtype of the weights.
        max_shard_bytes: Maximum size of a file; only a single larger tensor exceeds it.
        tokenizer: File of the tokenizer, if the run's store is not available.
        average: Use the average of the weights, if the run keeps one.

    Raises:
        ReptrainError: If there is no such checkpoint, transformers has no such model, or ``out`` is not
        empty.
    """
    check_choice("dtype", dtype, ("fp32", "bf16", "fp16"))
    trained = open_saved_model(run, step, average=average)
    _refuse_bidirectional(trained)
    settings = model_settings(trained.config, rows=trained.rows)
    pieces = trained.tokenizer(tokenizer)
    special = trained.special_ids(pieces)
    ids, pad = _special_settings(trained.config, special, pieces.pad_id)
    with _new_folder(out) as folder:
        write_tokenizer(
            pieces, folder, special=special, is_encoder_decoder=isinstance(trained.config, T5Config)
        )
        write_atomically(folder / "generation_config.json", json.dumps(ids | pad, indent=2) + "\n")
        trained.check()
        save_model(
            folder,
            trained.config,
            trained.shapes,
            trained.parameter,
            settings | ids | (pad if trained.config.family == "t5" else {}) | _lengths(trained),
            max_shard_bytes=max_shard_bytes,
            dtype=dtype,
        )
    return _done(out, run, settings["model_type"], trained)


def _refuse_bidirectional(trained: SavedModel) -> None:
    """Refuse decoders with bidirectional attention, which transformers' decoders do not have."""
    if isinstance(trained.config, DecoderConfig) and trained.reading != "causal":
        raise RunError(
            f"objective of {trained.path}",
            got="one with bidirectional attention over the inputs",
            rule="must use causal attention only, as transformers' decoders do",
            remedy="Use the model from its run folder.",
        )


def _done(path: Path, source: Path, model_type: str, trained: SavedModel) -> Exchanged:
    total = count_parameters(trained.config, trained.rows).total
    return Exchanged(path, source, model_type, total, trained.step)


def _special_settings(
    config: ModelConfig, special: SpecialIds, pad_id: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of transformers for the start and end ids of a text, and for the padding id.

    A decoder is padded with its end id, as GPT-2 is, and in generation_config.json only: without an attention
    mask, transformers masks another padding id in the prompt, which would hide our start token, and it does
    not train the embedding of the padding id in config.json.
    """
    end = special.ends[0] if special.ends else None
    ids: dict[str, Any] = {"eos_token_id": end if len(special.ends) == 1 else list(special.ends) or None}
    if isinstance(config, T5Config):
        pad = pad_id if pad_id >= 0 else special.start
        return ids | {"decoder_start_token_id": special.start}, {"pad_token_id": pad}
    return ids | {"bos_token_id": special.start}, {"pad_token_id": end}


def _lengths(trained: SavedModel) -> dict[str, Any]:
    """The maximum number of positions, if transformers requires one: the run's window."""
    if isinstance(trained.config, T5Config) or trained.window_tokens is None:
        return {}
    if trained.config.max_positions is not None:
        return {}
    return {"max_position_embeddings": trained.window_tokens}


def import_model(source: Path, out: Path) -> Exchanged:
    """Import a Hugging Face folder: its weights as a checkpoint, its tokenizer, and its origin.

    An imported model can generate, be exported, and be trained further (`init_from`).

    Args:
        source: The Hugging Face folder.
        out: The folder to create.

    Raises:
        ReptrainError: If the folder is incomplete or its model is not supported, or ``out`` is not empty.
    """
    opened = ModelFolder.open(source)
    trained = open_saved_model(source)
    trained.check()
    tokenizer = trained.own_tokenizer()
    special = opened.special_ids() if tokenizer is None else trained.special_ids(tokenizer)
    with _new_folder(out) as folder:
        described = ImportedModel(
            model=opened.config,
            start_id=special.start,
            end_ids=list(special.ends),
            window_tokens=trained.window_tokens,
        )
        write_model(folder, described, tokenizer, trained.shapes, trained.parameter)
        Parent(path=str(source.resolve()), step=None, weights=trained.fingerprint()).write(folder)
    return _done(out, source, opened.architecture.model_type, trained)


def write_model(
    folder: Path,
    described: ImportedModel,
    tokenizer: Tokenizer | None,
    shapes: Mapping[str, tuple[int, ...]],
    parameter: Callable[[str], Tensor],
) -> None:
    """Write a model in the layout of an imported model (see `reptrain.hub.saved_model`).

    Args:
        folder: The folder; created if missing.
        described: Content of model.yaml.
        tokenizer: The tokenizer, if there is one.
        shapes: Shapes of the model's parameters by name.
        parameter: Returns the weights of step 0, a parameter by name. One of them is held at a time.
    """
    folder.mkdir(exist_ok=True)
    if tokenizer is not None:
        write_atomically(folder / tokenizer.file_name, tokenizer.model_bytes)
    _write_checkpoint(folder / "checkpoints", shapes, parameter)
    # Last: a folder with this file is complete.
    described.write(folder, made_by="Imported")


def _write_checkpoint(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], parameter: Callable[[str], Tensor]
) -> None:
    place = folder / "step-0"
    place.mkdir(parents=True)
    name = "state-00000-of-00001.safetensors"
    tensors = [
        StoredTensor(f"{WEIGHT}:{key}@0", (prod(shape),), partial(_flat, parameter, key))
        for key, shape in shapes.items()
    ]
    manifest = CheckpointManifest(
        step=0,
        optimizer_steps=0,
        writers=Topology(world_size=1, zero_stage=0),
        loss_scaling={},
        parameters={key: list(shape) for key, shape in shapes.items()},
        files={name: write_tensors(place / name, tensors)},
        records={},
    )
    write_atomically(place / "manifest.json", manifest.text())
    write_atomically(folder / "latest", "step-0\n")


def _flat(parameter: Callable[[str], Tensor], name: str) -> Tensor:
    return parameter(name).reshape(-1)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder under a temporary name, renamed to ``out`` on success."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            f"folder {out}",
            got="an existing one",
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
