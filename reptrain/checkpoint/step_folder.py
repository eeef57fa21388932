"""Checkpoint folders: written under a temporary name, checksummed, flushed, renamed, then named in `latest`.

step-N/
  manifest.json                      step, writers, shape of every parameter, size and SHA-256 of every file
  state-RRRRR-of-WWWWW.safetensors   rank R's pieces of weights and moments (see `state_files`)
  ledger.jsonl, metrics.jsonl        the run's records up to this step
latest                               name of the newest checkpoint

Any number of ranks at any ZeRO stage can load a checkpoint; the topology that wrote it restores it bit for
bit. docs/decisions/checkpoints.md explains why DeepSpeed's format is not used.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reptrain.checkpoint import state
from reptrain.checkpoint.state_files import FileSum, read_pieces
from reptrain.checkpoint.state_hash import counters_hash, pieces_hash
from reptrain.checkpoint.weight_average import WeightAverage, saved_pieces
from reptrain.config.base import FileName, Int64
from reptrain.distributed.engine import Engine
from reptrain.distributed.world import World
from reptrain.errors import ResumeError
from reptrain.files import flush_folder, replacing, write_atomically
from reptrain.reading import parse_object
from reptrain.runs.records import JsonLines

CHECKPOINT_FORMAT = 3
"""Format of a checkpoint's files. Format 2 has no `state` in the manifest; format 1 is refused."""
_READ_FORMATS = (2, CHECKPOINT_FORMAT)
_MANIFEST = "manifest.json"
_LATEST = "latest"


class Topology(BaseModel):
    """The ranks that write or load a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    world_size: Int64
    zero_stage: Int64
    expert_parallel_size: Int64 = 1

    def __str__(self) -> str:
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        experts = f", experts over {self.expert_parallel_size}" if self.expert_parallel_size > 1 else ""
        return f"{ranks} at ZeRO {self.zero_stage}{experts}"


def topology(engine: Engine, world: World) -> Topology:
    """The topology of an engine's ranks."""
    return Topology(
        world_size=world.world_size,
        zero_stage=engine.zero_optimization_stage(),
        expert_parallel_size=state.expert_parallel_size(engine),
    )


class CheckpointManifest(BaseModel):
    """`manifest.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    format: Int64 = CHECKPOINT_FORMAT
    step: Int64
    """Completed steps of the run."""
    optimizer_steps: Int64
    """Steps that changed the weights."""
    writers: Topology
    loss_scaling: dict[str, float]
    """State of fp16's loss scaling; empty in other precisions."""
    # The key in the file is that of the first version of format 2.
    expert_bias: dict[str, list[Int64]] = Field(default_factory=dict, alias="votes")
    """Updates of the routers' expert bias (see `reptrain.training.load_balance`), by buffer name."""
    averaged_steps: Int64 = 0
    """Steps included in the average of the weights."""
    state: str | None = None
    """Hash of weights, optimizer state and counters (docs/format.md); None in format 2."""
    parameters: dict[str, list[int]]
    """Shape of each parameter, by name."""
    files: dict[FileName, FileSum]
    """State files of all ranks."""
    records: dict[FileName, FileSum]
    """Copies of the run's ledger and metrics."""

    def text(self) -> str:
        """The manifest as JSON, followed by a line with its checksum."""
        body = self.model_dump_json(indent=1, by_alias=True)
        return f"{body}\n{sha256(body.encode()).hexdigest()}\n"

    @classmethod
    def read(cls, folder: Path) -> CheckpointManifest:
        """Read the manifest of a checkpoint.

        Raises:
            ValueError: If the manifest is damaged.
            ResumeError: If it has another format.
            OSError: If it is missing or unreadable.
        """
        body, _, checksum = (folder / _MANIFEST).read_text(encoding="utf-8").rstrip("\n").rpartition("\n")
        if sha256(body.encode()).hexdigest() != checksum:
            raise ValueError(f"{_MANIFEST} does not match its checksum")
        number = parse_object(body).get("format")
        if number not in _READ_FORMATS:
            is_newer = isinstance(number, int) and number > CHECKPOINT_FORMAT
            reader = "a later version of reptrain" if is_newer else "the version of reptrain that wrote it"
            raise ResumeError(
                f"checkpoint {folder}",
                got=f"format {number}",
                rule=f"must have format {' or '.join(map(str, _READ_FORMATS))}",
                remedy=f"Use {reader}.",
            )
        return cls.model_validate_json(body)


class FoundCheckpoint(NamedTuple):
    """The checkpoint to resume from."""

    path: Path | None
    """Folder of the checkpoint; None if there is none yet."""
    manifest: CheckpointManifest | None
    damaged: list[str]
    """Newer checkpoints that were skipped, each with the reason."""


def make_latest(folder: Path, temporary: Path, manifest: CheckpointManifest) -> None:
    """Complete a checkpoint that was written under a temporary name, and make it the latest.

    Args:
        folder: Folder of the run's checkpoints.
        temporary: Its folder so far, with all files but the manifest.
        manifest: Its manifest.
    """
    final = folder / f"step-{manifest.step}"
    write_atomically(temporary / _MANIFEST, manifest.text())
    flush_folder(temporary)
    # A folder of this name is a damaged checkpoint, or one beyond the step that was resumed.
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    flush_folder(folder)
    write_atomically(folder / _LATEST, f"{final.name}\n")


def step_folders(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by step, intact or not."""
    named = ((path.name.removeprefix("step-"), path) for path in folder.glob("step-*"))
    return {int(number): path for number, path in named if number.isdecimal()}


def find(folder: Path, *, world: World) -> FoundCheckpoint:
    """The newest intact checkpoint. Each rank hashes its share of the files; all ranks return the same.

    Args:
        folder: Folder of the run's checkpoints.
        world: The ranks; every rank calls this function.

    Raises:
        ResumeError: If there are checkpoints but none is intact, or one has another format.
    """
    candidates, damaged = world.on_main(lambda: _candidates(folder))
    for path in candidates:
        manifest, problem = world.on_main(partial(_read_manifest, path))
        if manifest is not None:
            own = [*manifest.files.items(), *manifest.records.items()][world.rank :: world.world_size]
            problems = (expected.problem(path / name) for name, expected in own)
            of_ranks = world.gather(next((text for text in problems if text), None))
            problem = next((text for text in of_ranks if text), None)
        if problem is None:
            return FoundCheckpoint(path, manifest, damaged)
        damaged.append(f"checkpoint {path.name}: {problem}")
    if candidates:
        raise ResumeError(
            f"checkpoints in {folder}",
            got="; ".join(damaged),
            rule="must include an intact one to resume from",
            remedy="Restore one of them, or remove them all to start over.",
        )
    return FoundCheckpoint(None, None, damaged)


def _candidates(folder: Path) -> tuple[list[Path], list[str]]:
    """Checkpoints that may be resumed, newest first, and the problems with `latest`."""
    by_step = step_folders(folder)
    newest_first = sorted(by_step, reverse=True)
    pointer = folder / _LATEST
    try:
        latest = int(pointer.read_text().strip().removeprefix("step-"))
    except FileNotFoundError:
        # Also the state after a kill between writing the first checkpoint and `latest`.
        return [by_step[step] for step in newest_first], []
    except (OSError, ValueError) as error:
        return [by_step[step] for step in newest_first], [f"pointer {pointer.name}: {error}"]
    if latest not in by_step:
        return [by_step[step] for step in newest_first], [f"checkpoint step-{latest}: is missing"]
    # Checkpoints newer than `latest` are left over from before an older one was resumed.
    return [by_step[step] for step in newest_first if step <= latest], []


def _read_manifest(path: Path) -> tuple[CheckpointManifest | None, str | None]:
    try:
        manifest = CheckpointManifest.read(path)
    except ResumeError:
        # Not damaged: skipping it would discard the run's newer steps.
        raise
    except ValidationError as error:
        return None, f"{_MANIFEST}: {error.errors()[0]['msg']}"
    except OSError as error:
        return None, f"{_MANIFEST}: {error.strerror}"
    except ValueError as error:
        return None, str(error)
    if path.name != f"step-{manifest.step}":
        return None, f"holds step {manifest.step}"
    return manifest, None


def restore_records(found: FoundCheckpoint, logs: Sequence[JsonLines[Any]]) -> list[str]:
    """Cut the run's records back to the state in which a checkpoint holds them.

    Args:
        found: The checkpoint; if there is none, the records are removed.
        logs: The records that the checkpoints contain.

    Returns:
        A note for each record file that had changed and was restored from the checkpoint's copy.
    """
    restored = []
    for log in logs:
        if found.path is None or found.manifest is None:
            log.remove()
            continue
        expected = found.manifest.records[log.path.name]
        if not expected.begins(log.path):
            restored.append(f"{log.path.name}: changed before step {found.manifest.step}")
            with replacing(log.path) as file, (found.path / log.path.name).open("rb") as copy:
                shutil.copyfileobj(copy, file)
        log.cut(expected.bytes)
    return restored


def load(
    engine: Engine, path: Path, manifest: CheckpointManifest, *, average: WeightAverage | None = None
) -> None:
    """Load weights, optimizer state and the average of the weights, written by any topology.

    Raises:
        ResumeError: If the checkpoint holds another model.
    """
    _refuse_another_model(path, manifest.parameters, state.shapes(engine))
    wanted = state.pieces(engine)
    if average is not None:
        wanted, average.steps = average.pieces(wanted), manifest.averaged_steps
    read_pieces([path / name for name in manifest.files], wanted)
    state.set_optimizer_steps(engine, manifest.optimizer_steps)
    state.set_loss_scaling(engine, manifest.loss_scaling)
    state.set_expert_bias(engine.module, manifest.expert_bias)
    state.spread_weights(engine)


def live_counters_hash(engine: Engine, step: int, average: WeightAverage | None) -> int:
    """The part of an engine's counters in a state hash."""
    counters = {
        "step": step,
        "optimizer_steps": state.optimizer_steps(engine),
        "averaged_steps": average.steps if average else 0,
    }
    return counters_hash(counters, state.expert_bias(engine.module), state.loss_scaling(engine))


def check_loaded(
    engine: Engine,
    path: Path,
    manifest: CheckpointManifest,
    *,
    world: World,
    average: WeightAverage | None = None,
) -> str:
    """Hash the state after `load`, and compare it with that of the checkpoint; returns the state hash.

    Args:
        engine: The engine around the model.
        path: Folder of the checkpoint.
        manifest: Its manifest.
        world: The ranks; every rank calls this function.
        average: Average of the weights, if the run keeps one.

    Raises:
        ResumeError: If they differ.
    """
    held = saved_pieces(engine, average, world)
    total = sum(world.gather(pieces_hash(held))) + live_counters_hash(engine, manifest.step, average)
    loaded = f"{total % 2**64:016x}"
    if manifest.state is not None and loaded != manifest.state:
        raise ResumeError(
            f"state loaded from {path}",
            got=f"hash {loaded}",
            rule=f"must have the hash {manifest.state} that was saved",
            remedy="Remove this checkpoint to resume from the one before, and report the error.",
        )
    return loaded


def _refuse_another_model(
    path: Path, saved_shapes: dict[str, list[int]], own_shapes: dict[str, list[int]]
) -> None:
    for name in sorted(saved_shapes.keys() | own_shapes.keys()):
        if saved_shapes.get(name) != own_shapes.get(name):
            raise ResumeError(
                f"parameter {name}",
                got=f"shape {own_shapes.get(name)}",
                rule=f"must have the shape {saved_shapes.get(name)}, as in {path}",
                remedy="Resume with the model that wrote the checkpoint.",
            )
