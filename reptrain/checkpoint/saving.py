"""Writing a checkpoint: at once, or in the background while training continues.

Every rank hashes and writes its state, then the main rank adds the records and completes the checkpoint. In
the background both run in a thread, on a copy of the state, and the ranks go from one to the next between two
steps.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from reptrain.checkpoint import state
from reptrain.checkpoint.background import Background
from reptrain.checkpoint.host_copy import HostCopy
from reptrain.checkpoint.state_files import FileSum, copy_file, write_pieces
from reptrain.checkpoint.state_hash import pieces_hash
from reptrain.checkpoint.step_folder import (
    CheckpointManifest,
    live_counters_hash,
    make_latest,
    step_folders,
    topology,
)
from reptrain.checkpoint.weight_average import WeightAverage, saved_pieces
from reptrain.distributed.engine import Engine
from reptrain.distributed.world import World
from reptrain.errors import RunError
from reptrain.files import is_full

CompleteRecords = Callable[[str], Mapping[Path, int]]
"""Takes the state hash; returns the record files of the run, each with the size that the checkpoint gets."""


def save(
    engine: Engine,
    folder: Path,
    step: int,
    *,
    world: World,
    keep_last: int,
    keep: Collection[int] = (),
    average: WeightAverage | None = None,
    complete_records: CompleteRecords = lambda state_hash: {},
) -> None:
    """Save a checkpoint, make it the latest, and remove checkpoints that are not kept.

    Args:
        engine: The engine around the model.
        folder: Folder of the run's checkpoints.
        step: Completed steps of the run.
        world: The ranks; every rank calls this function.
        keep_last: Number of newest checkpoints to keep.
        keep: Steps whose checkpoints are always kept.
        average: Average of the weights, if the run keeps one.
        complete_records: Called on the main rank before the records are copied.

    Raises:
        RunError: If the disk is full; earlier checkpoints are untouched.
    """
    for _ in save_in_parts(
        engine,
        folder,
        step,
        world=world,
        keep_last=keep_last,
        keep=keep,
        average=average,
        complete_records=complete_records,
        background=Background(world),
    ):
        raise AssertionError


def save_in_parts(
    engine: Engine,
    folder: Path,
    step: int,
    *,
    world: World,
    keep_last: int,
    keep: Collection[int],
    average: WeightAverage | None,
    complete_records: CompleteRecords,
    background: Background,
    copy: HostCopy | None = None,
) -> Generator[None, None, None]:
    """`save` in parts: yields while work is done in the background. Every rank resumes it as often.

    Args:
        engine: See `save`.
        folder: See `save`.
        step: See `save`.
        world: See `save`.
        keep_last: See `save`.
        keep: See `save`.
        average: See `save`.
        complete_records: See `save`.
        background: Does the work.
        copy: Where the state is copied first, if training continues; None: it does not change.

    Raises:
        RunError: See `save`.
    """
    temporary = folder / f"tmp-step-{step}"
    world.on_main(lambda: _remove_temporary(folder))
    held = saved_pieces(engine, average, world)
    manifest = CheckpointManifest(
        step=step,
        optimizer_steps=state.optimizer_steps(engine),
        writers=topology(engine, world),
        loss_scaling=state.loss_scaling(engine),
        expert_bias=state.expert_bias(engine.module),
        averaged_steps=average.steps if average else 0,
        parameters=state.shapes(engine),
        files={},
        records={},
    )
    counters = live_counters_hash(engine, step, average)
    # A GPU hashes its state in a moment. What is on the host is hashed while training continues.
    on_host = all(view.device.type == "cpu" for piece in held for view in piece.views.values())
    part = None if on_host else pieces_hash(held)
    held = held if copy is None else copy.take(held)
    name = f"state-{world.rank:05}-of-{world.world_size:05}.safetensors"
    try:
        written = yield from background.run(partial(_write, temporary, name, held, part))
        state_hash = f"{(sum(one.part for one in written) + counters) % 2**64:016x}"
        files = {one.name: one.sum for one in written}
        manifest = manifest.model_copy(update={"state": state_hash, "files": files})
        records = world.on_main(lambda: complete_records(state_hash))
        complete = partial(_complete, folder, temporary, manifest, records, keep_last, keep)
        yield from background.run(complete if world.is_main else _nothing)
    except (OSError, RunError):
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _nothing(tick: Callable[[], None]) -> None:
    pass


def _remove_temporary(folder: Path) -> None:
    for path in folder.glob("tmp-step-*"):
        shutil.rmtree(path)


class _Written(NamedTuple):
    name: str
    sum: FileSum
    part: int
    """This rank's part of the state hash."""


def _write(
    temporary: Path, name: str, held: list[state.Piece], part: int | None, tick: Callable[[], None]
) -> _Written:
    """Write this rank's state file, and hash the state unless it is hashed already."""
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        file_sum = write_pieces(temporary / name, held, tick)
    except OSError as error:
        raise _disk_error(temporary.parent, error) from error
    return _Written(name, file_sum, pieces_hash(held, tick) if part is None else part)


def _complete(
    folder: Path,
    temporary: Path,
    manifest: CheckpointManifest,
    records: Mapping[Path, int],
    keep_last: int,
    keep: Collection[int],
    tick: Callable[[], None],
) -> None:
    """Copy the records, make the checkpoint the latest, and remove those that are not kept."""
    try:
        copies = {path.name: copy_file(path, temporary / path.name, size) for path, size in records.items()}
        make_latest(folder, temporary, manifest.model_copy(update={"records": copies}))
    except OSError as error:
        raise _disk_error(folder, error) from error
    _remove_old(folder, manifest.step, keep_last, keep)


def _disk_error(folder: Path, error: OSError) -> Exception:
    if not is_full(error):
        return error
    return RunError(
        f"checkpoint in {folder}",
        got=f"{shutil.disk_usage(folder).free:,} bytes free",
        rule="must fit on the disk",
        remedy="Free space and run the same command again: it resumes from the previous checkpoint.",
    )


def _remove_old(folder: Path, newest: int, keep_last: int, keep: Collection[int]) -> None:
    by_step = step_folders(folder)
    kept = {*sorted(step for step in by_step if step <= newest)[-keep_last:], *keep}
    for step, path in by_step.items():
        # Checkpoints beyond the newest are left over from before an older one was resumed.
        if step not in kept or step > newest:
            shutil.rmtree(path)
