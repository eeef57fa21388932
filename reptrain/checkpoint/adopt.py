"""Taking over a checkpoint of another run."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from reptrain.checkpoint.state_files import FileSum
from reptrain.checkpoint.step_folder import CheckpointManifest, make_latest
from reptrain.errors import ResumeError


def intact_manifest(path: Path) -> CheckpointManifest | str:
    """The manifest of a checkpoint, or why it cannot be used.

    Args:
        path: Folder of the checkpoint. All its files are hashed.
    """
    try:
        manifest = CheckpointManifest.read(path)
    except (ResumeError, ValidationError, ValueError, OSError) as error:
        return f"no intact manifest ({error})"
    problems = [
        expected.problem(path / name)
        for name, expected in (*manifest.files.items(), *manifest.records.items())
    ]
    return next((problem for problem in problems if problem), manifest)


def adopt(source: Path, manifest: CheckpointManifest, folder: Path, records: Mapping[str, bytes]) -> None:
    """Make a checkpoint of another run the latest of this one. Its state files are shared where possible.

    Args:
        source: Folder of the checkpoint.
        manifest: Its manifest.
        folder: Folder of this run's checkpoints.
        records: Content of this run's records up to the checkpoint, by file name.

    Raises:
        OSError: If the disk is full; nothing counts then.
    """
    temporary = folder / f"tmp-step-{manifest.step}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in manifest.files:
        _link(source / name, temporary / name)
    sums = {}
    for name, content in records.items():
        (temporary / name).write_bytes(content)
        sums[name] = FileSum(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    make_latest(folder, temporary, manifest.model_copy(update={"records": sums}))


def _link(source: Path, target: Path) -> None:
    """A second name of a file that never changes, or a copy on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
