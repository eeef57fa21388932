"""Finding run folders below a path or a URL of any file system that fsspec knows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from reptrain.errors import RunError
from reptrain.text.remote import explained, is_url, local_path, open_file_system, without_credentials

# Each run has them, whatever else was lost.
_MARKS = ("plan.json", "ledger.jsonl")
_NEVER_RUNS = {"checkpoints", "tensorboard"}
_SMALL_FILES = (
    "plan.json", "config.yaml", "status.json", "environment.json", "audit.json", "metrics.jsonl",
    "events.jsonl",
)  # fmt: skip


class RunPlace(NamedTuple):
    """A run folder: the name to show, and where its small files can be read."""

    shown: str
    path: Path


@contextmanager
def found_runs(address: str) -> Iterator[list[RunPlace]]:
    """The run folders at or below a path or URL, sorted.

    Of a run at a URL, the small files (no checkpoints, no ledger) are copied to a temporary folder, which
    exists inside the ``with`` block.

    Args:
        address: A path, or a URL such as ``s3://bucket/runs``.

    Raises:
        RunError: If the folder does not exist.
        TextError: If a URL cannot be read.
    """
    local = local_path(address) if is_url(address) else address
    if local is not None:
        yield [RunPlace(str(path), path) for path in _local_runs(Path(local))]
        return
    with tempfile.TemporaryDirectory(prefix="reptrain-runs-") as copies:
        yield _copied_runs(address, Path(copies))


def _local_runs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise _missing(str(folder))
    runs = []
    for path, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if name not in _NEVER_RUNS and not name.startswith("."))
        if any(mark in names for mark in _MARKS):
            runs.append(Path(path))
    return sorted(runs)


def _copied_runs(address: str, copies: Path) -> list[RunPlace]:
    shown = without_credentials(address).rstrip("/")
    with _explained(address):
        files, root = open_file_system(address)
        root = root.rstrip("/")
        if not files.isdir(root):
            raise _missing(shown)
        names = [str(name) for name in files.find(root)]
    below = {name.removeprefix(root).lstrip("/"): name for name in names}
    folders = {
        relative.rpartition("/")[0]
        for relative in below
        if relative.rpartition("/")[2] in _MARKS and not _NEVER_RUNS & set(relative.split("/")[:-1])
    }
    places = []
    for number, folder in enumerate(sorted(folders)):
        # The run's name stays the last part of the path.
        path = copies / str(number) / (folder.rpartition("/")[2] or shown.rpartition("/")[2] or "run")
        path.mkdir(parents=True)
        with _explained(address):
            _copy_small_files(files, below, folder, path)
        places.append(RunPlace(f"{shown}/{folder}".rstrip("/"), path))
    return places


def _explained(address: str) -> AbstractContextManager[None]:
    return explained(
        address,
        what="run folders",
        rule="must be readable",
        remedy="Check the address and your access to it.",
    )


def _copy_small_files(files: Any, below: dict[str, str], folder: str, path: Path) -> None:
    for name in _SMALL_FILES:
        relative = f"{folder}/{name}".lstrip("/")
        if relative in below:
            (path / name).write_bytes(files.cat_file(below[relative]))


def _missing(shown: str) -> RunError:
    return RunError(
        shown,
        got="no such folder",
        rule="must be a folder with runs",
        remedy="Check the path; `reptrain runs FOLDER` lists the runs below it.",
    )
