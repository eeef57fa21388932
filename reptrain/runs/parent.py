"""The parent of a run: the model that its initial weights came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from reptrain.config.base import PathText
from reptrain.files import write_atomically
from reptrain.runs.records import FrozenRecord, read_record

_FILE = "parent.json"


class Parent(FrozenRecord):
    """`parent.json` of a run with `init_from`, and of an imported model."""

    path: PathText
    """Path of the parent."""
    step: int | None
    """Steps of the parent run; None for a Hugging Face folder."""
    weights: str
    """Fingerprint of its weights."""
    changed: dict[str, tuple[Any, Any]] = Field(default_factory=dict)
    """Model settings that differ, by dotted key: (the parent's value, this run's value)."""
    beside: bool = False
    """Whether the parent is in the folder that also holds the run, so that both can be moved together."""

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        write_atomically(folder / _FILE, [self.model_dump_json(indent=2), "\n"])

    def is_at(self, init_from: str, run: Path) -> bool:
        """Whether a path, however it is spelled, is that of the parent.

        Args:
            init_from: The path.
            run: Folder of the run, which may have been moved together with its parent.
        """
        given, recorded = Path(init_from).resolve(), Path(self.path)
        return given == recorded or (self.beside and given == run.resolve().parent / recorded.name)


def read_parent(folder: Path) -> Parent | None:
    """The parent recorded in a folder, or None.

    Raises:
        RunError: If the file is damaged.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    return read_record(Parent, path, remedy="Restore the file, or start again in a new folder.")
