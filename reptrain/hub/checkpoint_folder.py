"""The checkpoint of a model's folder, and the errors of folders without one."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError

from reptrain import checkpoint
from reptrain.checkpoint import CheckpointManifest
from reptrain.distributed.world import World
from reptrain.errors import ResumeError, RunError

_SINGLE_RANK = World(0, 1, 0, torch.device("cpu"))


def intact_checkpoint(path: Path, step: int | None) -> tuple[Path, CheckpointManifest]:
    """The folder and the manifest of a checkpoint.

    Args:
        path: Folder of the model.
        step: Step of the checkpoint; None: the newest intact one.

    Raises:
        ReptrainError: If there is none, or it is damaged.
    """
    folder = path / "checkpoints"
    if step is None:
        newest = checkpoint.find(folder, world=_SINGLE_RANK)
        if newest.path is None or newest.manifest is None:
            raise wrong_model(path, "no checkpoint yet", "must have a checkpoint")
        return newest.path, newest.manifest
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
        existing = ", ".join(sorted(path.name for path in folder.glob("step-*")))
        raise wrong_model(place, problem, f"must be an intact checkpoint (existing: {existing or 'none'})")
    return place, manifest


def no_average(path: Path, got: str) -> RunError:
    """The error of a model without an average of its weights."""
    return RunError(
        f"average of {path}",
        got=got,
        rule="requires a run that keeps an average of its weights",
        remedy="Omit --average, or train with the setting average.",
    )


def wrong_model(path: Path, got: str, rule: str) -> RunError:
    """The error of a folder that is not that of a model."""
    return RunError(
        f"model {path}",
        got=got,
        rule=rule,
        remedy="Pass a run folder, one of its checkpoints, or a Hugging Face folder.",
    )
