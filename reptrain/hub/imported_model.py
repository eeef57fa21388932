"""`model.yaml`: the description of an imported or fine-tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field

from reptrain.config.base import Frozen
from reptrain.config.load import dump_yaml, read_yaml, validate
from reptrain.config.model import ModelConfig
from reptrain.config.objectives import Reading
from reptrain.files import write_atomically

MODEL_FILE = "model.yaml"


class ImportedModel(Frozen):
    """The content of `model.yaml`."""

    model: ModelConfig
    """The model; `vocab_size` is set."""
    start_id: int | None
    """Token before the first one of a decoder's text; null: none."""
    end_ids: list[int] = Field(default_factory=list)
    """Tokens that end a text."""
    window_tokens: int | None = None
    """Maximum number of positions, if known."""
    reading: Reading | None = None
    """How it treats a prompt; null: by its family."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the file in a folder.

        Raises:
            ConfigError: If it is not valid.
        """
        return validate(cls, read_yaml(folder / MODEL_FILE))

    def write(self, folder: Path, *, made_by: str) -> None:
        """Write the file into a folder.

        Args:
            folder: The model's folder.
            made_by: How the model was made, for the comment on the first line.
        """
        text = dump_yaml(self.model_dump(mode="json"))
        write_atomically(folder / MODEL_FILE, f"# {made_by} by reptrain.\n{text}")
