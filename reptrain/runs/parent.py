"""Where a run's first weights came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from reptrain.errors import RunError
from reptrain.files import read_small, write_atomically
from reptrain.runs.files import FrozenRecord

_FILE = "parent.json"


class Parent(FrozenRecord):
    """`parent.json` of a run with `init_from`, and of an imported model."""

    path: str
    """The model that was read."""
    step: int | None
    """Steps of the run that made it; None for a Hugging Face folder."""
    weights: str
    """Fingerprint of its weights."""
    changed: dict[str, tuple[Any, Any]] = Field(default_factory=dict)
    """Settings of the model by dotted key that differ: there, and here."""

    def write(self, folder: Path) -> None:
        """Put it into a folder."""
        write_atomically(folder / _FILE, [self.model_dump_json(indent=2), "\n"])


def read_parent(folder: Path) -> Parent | None:
    """The parent that a folder names; None where it names none.

    Raises:
        RunError: If the file is damaged.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        return Parent.model_validate_json(read_small(path))
    except ValidationError as error:
        raise RunError(
            str(path),
            got=error.errors()[0]["msg"],
            rule="must be a whole record of the parent",
            remedy="Restore the file, or begin again in a new folder.",
        ) from error
