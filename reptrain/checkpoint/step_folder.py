"""Checkpoints: written under a temporary name, summed, flushed, renamed, and found by our own pointer.

step-N/
  manifest.json                      step, writers, every parameter's shape, every file's size and SHA-256
  state-RRRRR-of-WWWWW.safetensors   rank R's pieces of weights and moments (see `state_files`)
  ledger.jsonl, metrics.jsonl        the run's records up to this step
latest                               the name of the newest

They belong to no topology: any number of ranks at any ZeRO stage reads them, its own writers bit for bit.
docs/decisions/checkpoints.md says why they are not DeepSpeed's.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reptrain.checkpoint import state
from reptrain.checkpoint.state_files import FileSum, copy_file, read_pieces, write_pieces
from reptrain.checkpoint.weight_average import WeightAverage
from reptrain.config.base import FileName
from reptrain.distributed.world import World
from reptrain.errors import ResumeError, RunError
from reptrain.files import flush_folder, replacing, write_atomically
from reptrain.runs.records import JsonLines

CHECKPOINT_FORMAT = 2
"""Format of a checkpoint's files. Format 1 is refused."""
_MANIFEST = "manifest.json"
_LATEST = "latest"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Topology(BaseModel):
    """Who wrote or reads a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    world_size: int
    zero_stage: int
    expert_parallel_size: int = 1

    def __str__(self) -> str:
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        experts = f", experts over {self.expert_parallel_size}" if self.expert_parallel_size > 1 else ""
        return f"{ranks} at ZeRO {self.zero_stage}{experts}"


def topology(engine: Any, world: World) -> Topology:
    """The ranks around an engine."""
    return Topology(
        world_size=world.world_size,
        zero_stage=engine.zero_optimization_stage(),
        expert_parallel_size=state.expert_parallel_size(engine),
    )


class CheckpointManifest(BaseModel):
    """`manifest.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = CHECKPOINT_FORMAT
    step: int
    """Steps of the run completed."""
    optimizer_steps: int
    """Of them those that changed the weights."""
    writers: Topology
    loss_scaling: dict[str, float]
    """fp16's, else empty."""
    votes: dict[str, list[int]] = Field(default_factory=dict)
    """The routers' (see `reptrain.training.load_balance.vote`), by name."""
    averaged_steps: int = 0
    """Steps that are in the average of the weights."""
    parameters: dict[str, list[int]]
    """Name to shape."""
    files: dict[FileName, FileSum]
    """Of every rank."""
    records: dict[FileName, FileSum]
    """Copies of the run's ledger and metrics."""

    def text(self) -> str:
        """Its JSON, with a checksum of itself in the last line."""
        body = self.model_dump_json(indent=1)
        return f"{body}\n{sha256(body.encode()).hexdigest()}\n"

    @classmethod
    def read(cls, folder: Path) -> CheckpointManifest:
        """The manifest of a checkpoint.

        Raises:
            ValueError: If it is not as it was written.
            ResumeError: If it is in another format.
            OSError: If there is none.
        """
        body, _, checksum = (folder / _MANIFEST).read_text(encoding="utf-8").rstrip("\n").rpartition("\n")
        if sha256(body.encode()).hexdigest() != checksum:
            raise ValueError(f"{_MANIFEST} does not match its checksum")
        found = json.loads(body).get("format")
        if found != CHECKPOINT_FORMAT:
            later = isinstance(found, int) and found > CHECKPOINT_FORMAT
            reader = "a later version of reptrain" if later else "the version of reptrain that wrote it"
            raise ResumeError(
                f"checkpoint {folder}",
                got=f"format {found}",
                rule=f"must have format {CHECKPOINT_FORMAT}",
                remedy=f"Use {reader}.",
            )
        return cls.model_validate_json(body)


class FoundCheckpoint(NamedTuple):
    """The checkpoint to go on from."""

    path: Path | None
    """None where there is none yet."""
    manifest: CheckpointManifest | None
    damaged: list[str]
    """Newer ones that were passed over, each with what is wrong with it."""


def save(
    engine: Any,
    folder: Path,
    step: int,
    *,
    world: World,
    records: Sequence[Path],
    keep_last: int,
    keep: Collection[int] = (),
    average: WeightAverage | None = None,
) -> None:
    """Save a checkpoint, make it the latest, and remove those that are not kept.

    Args:
        engine: DeepSpeed's engine around the model.
        folder: Of the run's checkpoints.
        step: Steps of the run completed.
        world: The ranks; every one calls this.
        records: Files of the run that are part of its state, and are kept as they are now.
        keep_last: How many of the newest stay.
        keep: Steps whose checkpoints stay for good.
        average: Of the weights, where the run keeps one.

    Raises:
        RunError: If the disk is full; the checkpoints before this one are untouched.
    """
    temporary = folder / f"tmp-step-{step}"
    world.on_main(lambda: _clear(folder))
    name = f"state-{world.rank:05}-of-{world.world_size:05}.safetensors"
    held = state.own_pieces(engine, rank=world.rank, world_size=world.world_size)
    if average is not None:
        held = average.pieces(held)
    outcomes = world.gather(_attempt_write(temporary, name, held))
    failed = next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)

    def complete() -> None:
        if failed is not None:
            shutil.rmtree(temporary, ignore_errors=True)
            raise failed
        with _removed_where_full(temporary):
            copies = {path.name: copy_file(path, temporary / path.name) for path in records}
        manifest = CheckpointManifest(
            step=step,
            optimizer_steps=state.optimizer_steps(engine),
            writers=topology(engine, world),
            loss_scaling=state.loss_scaling(engine),
            votes=state.votes(engine),
            averaged_steps=average.steps if average else 0,
            parameters=state.shapes(engine),
            files=dict(outcomes),
            records=copies,
        )
        with _removed_where_full(temporary):
            _make_latest(folder, temporary, manifest)
        _remove_old(folder, step, keep_last, keep)

    world.on_main(complete)


def _clear(folder: Path) -> None:
    for left in folder.glob("tmp-step-*"):
        shutil.rmtree(left)


def _attempt_write(temporary: Path, name: str, held: list[state.Piece]) -> tuple[str, FileSum] | Exception:
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        return name, write_pieces(temporary / name, held)
    except OSError as error:
        return _disk_error(temporary.parent, error)


def _disk_error(folder: Path, error: OSError) -> Exception:
    if error.errno not in _FULL:
        return error
    return RunError(
        f"checkpoint in {folder}",
        got=f"{shutil.disk_usage(folder).free:,} bytes free",
        rule="must fit on the disk",
        remedy="Free space and run the same command again: it goes on from the checkpoint before.",
    )


@contextmanager
def _removed_where_full(temporary: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _disk_error(temporary.parent, error) from error


def _make_latest(folder: Path, temporary: Path, manifest: CheckpointManifest) -> None:
    final = folder / f"step-{manifest.step}"
    write_atomically(temporary / _MANIFEST, manifest.text())
    flush_folder(temporary)
    # One of a future that was cut off, or one that was found damaged: never the latest.
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    flush_folder(folder)
    write_atomically(folder / _LATEST, f"{final.name}\n")


def _steps(folder: Path) -> dict[int, Path]:
    named = ((path.name.removeprefix("step-"), path) for path in folder.glob("step-*"))
    return {int(number): path for number, path in named if number.isdecimal()}


def _remove_old(folder: Path, newest: int, keep_last: int, keep: Collection[int]) -> None:
    by_step = _steps(folder)
    kept = {*sorted(step for step in by_step if step <= newest)[-keep_last:], *keep}
    for step, path in by_step.items():
        # A step beyond the newest belongs to a future that was cut off when an older one was resumed.
        if step not in kept or step > newest:
            shutil.rmtree(path)


def find(folder: Path, *, world: World) -> FoundCheckpoint:
    """The newest checkpoint that is whole. Every rank hashes its share of the files; all agree.

    Args:
        folder: Of the run's checkpoints.
        world: The ranks; every one calls this.

    Raises:
        ResumeError: If there are checkpoints and none is whole, or one is in another format.
    """
    candidates, damaged = world.on_main(lambda: _candidates(folder))
    for path in candidates:
        manifest, problem = world.on_main(lambda path=path: _read_manifest(path))
        if manifest is not None:
            own = [*manifest.files.items(), *manifest.records.items()][world.rank :: world.world_size]
            problems = (expected.problem(path / name) for name, expected in own)
            found = world.gather(next((text for text in problems if text), None))
            problem = next((text for text in found if text), None)
        if problem is None:
            return FoundCheckpoint(path, manifest, damaged)
        damaged.append(f"checkpoint {path.name}: {problem}")
    if candidates:
        raise ResumeError(
            f"checkpoints in {folder}",
            got="; ".join(damaged),
            rule="must hold a whole one to go on from",
            remedy="Restore one of them, or remove them all to begin again.",
        )
    return FoundCheckpoint(None, None, damaged)


def _candidates(folder: Path) -> tuple[list[Path], list[str]]:
    """What may be resumed, the newest first, and what is wrong with the pointer."""
    by_step = _steps(folder)
    newest_first = sorted(by_step, reverse=True)
    pointer = folder / _LATEST
    try:
        latest = int(pointer.read_text().strip().removeprefix("step-"))
    except FileNotFoundError:
        # A kill between the first checkpoint and its pointer leaves this too.
        return [by_step[step] for step in newest_first], []
    except (OSError, ValueError) as error:
        return [by_step[step] for step in newest_first], [f"pointer {pointer.name}: {error}"]
    if latest not in by_step:
        return [by_step[step] for step in newest_first], [f"checkpoint step-{latest}: is not there"]
    # What is newer than the pointer says belongs to a future that was cut off.
    return [by_step[step] for step in newest_first if step <= latest], []


def _read_manifest(path: Path) -> tuple[CheckpointManifest | None, str | None]:
    try:
        manifest = CheckpointManifest.read(path)
    except ResumeError:
        # Not damaged: passing over it would cut the run back.
        raise
    except ValidationError as error:
        return None, f"{_MANIFEST}: {error.errors()[0]['msg']}"
    except OSError as error:
        return None, f"{_MANIFEST}: {error.strerror}"
    except ValueError as error:
        return None, str(error)
    if path.name != f"step-{manifest.step}":
        return None, f"is that of step {manifest.step}"
    return manifest, None


def restore_records(found: FoundCheckpoint, logs: Sequence[JsonLines[Any]]) -> list[str]:
    """Bring the run's records back to what they were when a checkpoint was written.

    Args:
        found: The checkpoint; without one the records begin anew.
        logs: The records, of the files that were given to `save`.

    Returns:
        Which of them were no longer as they had been written, and were restored from the checkpoint's copies.
    """
    restored = []
    for log in logs:
        if found.path is None or found.manifest is None:
            log.path.unlink(missing_ok=True)
            continue
        expected = found.manifest.records[log.path.name]
        if not expected.begins(log.path):
            restored.append(f"{log.path.name}: not as written up to step {found.manifest.step}")
            with replacing(log.path) as file, (found.path / log.path.name).open("rb") as copy:
                shutil.copyfileobj(copy, file)
        log.cut(expected.bytes)
    return restored


def load(
    engine: Any, path: Path, manifest: CheckpointManifest, *, average: WeightAverage | None = None
) -> None:
    """Load weights, optimizer state and the average of the weights, whoever wrote them.

    Raises:
        ResumeError: If the checkpoint is of another model.
    """
    _refuse_another_model(path, manifest.parameters, state.shapes(engine))
    wanted = state.pieces(engine)
    if average is not None:
        wanted, average.steps = average.pieces(wanted), manifest.averaged_steps
    read_pieces([path / name for name in manifest.files], wanted)
    state.set_optimizer_steps(engine, manifest.optimizer_steps)
    state.set_loss_scaling(engine, manifest.loss_scaling)
    state.set_votes(engine, manifest.votes)
    state.spread_weights(engine)


def _refuse_another_model(path: Path, there: dict[str, list[int]], here: dict[str, list[int]]) -> None:
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise ResumeError(
                f"parameter {name}",
                got=f"shape {here.get(name)}",
                rule=f"must have the shape {there.get(name)}, as in {path}",
                remedy="Resume with the model that wrote the checkpoint.",
            )
