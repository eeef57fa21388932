"""The token that ends a text, as named by the files next to a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from reptrain.errors import ReptrainError, TokenizerError
from reptrain.reading import ReadError, decode, parse_json


class NamedEnd(NamedTuple):
    """The end of a text as a file names it: by id or by piece."""

    id: int | None
    piece: str | None
    file: str


def find_end(folder: Path) -> NamedEnd | None:
    """The end named by the files of a store, an imported or fine-tuned model, or a Hugging Face model.

    Reads manifest.json, model.yaml, config.json, generation_config.json and tokenizer_config.json, in this
    order. The first file that names an end decides; if it names several, the first one.

    Args:
        folder: Folder of the tokenizer's file.

    Raises:
        TokenizerError: If one of these files cannot be read.
    """
    for name, read in _READERS.items():
        if not (folder / name).is_file():
            continue
        try:
            data = _read_yaml(folder / name) if name == "model.yaml" else _read_json(folder / name)
        except (OSError, ReadError, ReptrainError) as error:
            raise TokenizerError(
                f"{folder / name} beside the tokenizer",
                got=getattr(error, "got", None) or getattr(error, "strerror", None) or str(error),
                rule="must be readable, because it may declare the EOS",
                remedy="Restore or remove it, or set the EOS with --eos if the command has that option.",
            ) from error
        end = read(data) if isinstance(data, Mapping) else None
        if isinstance(end, list):
            end = end[0] if end else None
        if isinstance(end, Mapping):
            end = end.get("content")
        if isinstance(end, str):
            return NamedEnd(None, end, name)
        if isinstance(end, int) and not isinstance(end, bool):
            return NamedEnd(end, None, name)
    return None


def _read_yaml(path: Path) -> Any:
    # Most folders have no model.yaml, and the configuration takes a third of a second to import.
    from reptrain.config.load import read_yaml

    return read_yaml(path)


def _read_json(path: Path) -> Any:
    return parse_json(decode(path.read_bytes()))


def _store_end(data: Mapping[str, Any]) -> object:
    # Other programs have a manifest.json too.
    return data.get("eos_id") if "tokenizer_file" in data else None


_READERS: dict[str, Callable[[Mapping[str, Any]], object]] = {
    "manifest.json": _store_end,
    "model.yaml": lambda data: data.get("end_ids"),
    "config.json": lambda data: data.get("eos_token_id"),
    "generation_config.json": lambda data: data.get("eos_token_id"),
    "tokenizer_config.json": lambda data: data.get("eos_token"),
}
