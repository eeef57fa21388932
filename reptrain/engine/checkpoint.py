"""Checkpoints: written under a temporary name, renamed when complete, found by our own pointer.

A run's whole state beside DeepSpeed's weights and optimizer is one integer: the step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reptrain.engine.distributed import World
from reptrain.errors import ResumeError, RunError
from reptrain.files import flush_folder, flush_tree, write_atomically

_META = "reptrain.json"
_LATEST = "latest"
# A write failed, and this little was free: the disk was full, whatever the exception says.
_FULL_BYTES = 1 << 24


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint needs to be loaded into."""

    step: int
    """Optimizer steps completed."""
    world_size: int
    zero_stage: int
    precision: str


def save(engine: Any, folder: Path, meta: CheckpointMeta, *, world: World, keep_last: int) -> None:
    """Save a checkpoint, make it the latest, and remove those before the newest ``keep_last``.

    Raises:
        RunError: If the disk is full; the checkpoints before this one are untouched.
    """
    final, temporary = folder / f"step-{meta.step}", f"tmp-step-{meta.step}"
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / temporary, ignore_errors=True)
    world.barrier()
    with _room_for(folder, folder / temporary):
        engine.save_checkpoint(str(folder), tag=temporary, save_latest=False)
    world.barrier()
    if world.is_main:
        write_atomically(folder / temporary / _META, [json.dumps(asdict(meta)), "\n"])
        flush_tree(folder / temporary)
        shutil.rmtree(final, ignore_errors=True)
        (folder / temporary).rename(final)
        flush_folder(folder)
        write_atomically(folder / _LATEST, [final.name, "\n"])
        _remove_old(folder, meta.step, keep_last)
    world.barrier()


@contextmanager
def _room_for(folder: Path, temporary: Path) -> Iterator[None]:
    # torch reports a failed write as a RuntimeError that does not say why.
    try:
        yield
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(folder).free
        shutil.rmtree(temporary, ignore_errors=True)
        if free > _FULL_BYTES:
            raise
        raise RunError(
            f"checkpoint in {folder}",
            got=f"{free:,} bytes free",
            rule="must fit on the disk",
            remedy="Free space and run the same command again: it goes on from the checkpoint before.",
        ) from error


def _remove_old(folder: Path, newest: int, keep_last: int) -> None:
    by_step = {int(path.name.removeprefix("step-")): path for path in folder.glob("step-*")}
    kept = sorted(step for step in by_step if step <= newest)[-keep_last:]
    for step, path in by_step.items():
        # A step beyond the newest belongs to a future that was cut off when an older one was resumed.
        if step not in kept:
            shutil.rmtree(path)


def latest(folder: Path) -> tuple[Path, CheckpointMeta] | None:
    """The newest complete checkpoint, or None where there is none yet.

    Raises:
        ResumeError: If the pointer names a checkpoint that is not there or cannot be read.
    """
    pointer = folder / _LATEST
    if not pointer.exists():
        return None
    path = folder / pointer.read_text().strip()
    try:
        return path, CheckpointMeta(**json.loads((path / _META).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ResumeError(
            f"checkpoint {path}",
            got=type(error).__name__,
            rule="must be complete and readable",
            remedy=f"Write the name of another checkpoint of {folder} into {pointer}.",
        ) from error


def load(engine: Any, path: Path, meta: CheckpointMeta, *, expected: CheckpointMeta) -> None:
    """Load weights and optimizer state.

    Raises:
        ResumeError: If the checkpoint was written by other ranks, ZeRO stage or precision.
    """
    for name in ("world_size", "zero_stage", "precision"):
        if getattr(meta, name) != getattr(expected, name):
            raise ResumeError(
                f"resume {name}",
                got=getattr(expected, name),
                rule=f"must be {getattr(meta, name)}, as in {path}",
                remedy="Resume with the same number of ranks, ZeRO stage and precision.",
            )
    loaded, _ = engine.load_checkpoint(str(path.parent), tag=path.name)
    if loaded is None:
        raise ResumeError(
            f"checkpoint {path}",
            got="nothing",
            rule="must hold DeepSpeed's files",
            remedy="Use an older one.",
        )
