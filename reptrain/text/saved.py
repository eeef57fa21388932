"""Folders saved by the `datasets` library. A state.json that selects or changes rows is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from reptrain.errors import TextError
from reptrain.reading import ReadError, decode, parse_object

STATE = "state.json"
DICT = "dataset_dict.json"
# Cached results of map and filter, and temporary files.
_CACHE = re.compile(r"cache-\w+\.arrow|tmp\w{8}(\.arrow)?")


def is_cache(name: str) -> bool:
    """Whether a file is a cached result of map or filter, or a temporary file, in the folder of a dataset."""
    return _CACHE.fullmatch(PurePosixPath(name).name) is not None


def saved_files(source: str, folder: str, names: Sequence[str], read: Callable[[str], bytes]) -> list[str]:
    """The data files of a saved dataset, in the order of its state.json.

    Formats are ignored: they change how rows are displayed, not which rows there are.

    Args:
        source: The source, for messages.
        folder: The dataset's folder below the source, empty or with a trailing ``/``.
        names: All files in the folder, without README, LICENSE and the like.
        read: Returns a file's content.

    Raises:
        TextError: If the state selects or changes rows, or the folder has files that it does not list.
    """
    state = _read(source, f"{folder}{STATE}", read)
    items = state.get("_data_files")
    if not isinstance(items, list) or not all(
        isinstance(item, dict) and isinstance(item.get("filename"), str) for item in items
    ):
        raise _refused(source, f"a {folder}{STATE} without _data_files", "save it again with save_to_disk")
    files = [folder + item["filename"] for item in items]
    for name in files:
        if name not in names:
            raise _refused(source, f"{name}, which {folder}{STATE} lists, missing", "restore the file")
    chosen = next((key for key, value in state.items() if key.startswith("_indices") and value), None)
    if chosen is not None:
        raise _refused(
            source,
            f"{chosen} in {folder}{STATE}: rows selected from its files",
            "save it again with a newer version: load_from_disk(OLD).flatten_indices().save_to_disk(NEW)",
        )
    if any(_is_part(item) for item in items) or _has_transforms(state.get("_inplace_history")):
        raise _refused(
            source,
            f"a {folder}{STATE} that uses a part of its files, or changes their columns",
            "save it again with a newer version: load_from_disk(OLD).save_to_disk(NEW)",
        )
    other = [name for name in names if name not in (*files, f"{folder}{STATE}") and not is_cache(name)]
    if other:
        raise _refused(source, f"{other[0]}, which {folder}{STATE} does not list", "remove the file")
    return files


def check_splits(source: str, folder: str, saved: Sequence[str], read: Callable[[str], bytes]) -> None:
    """Compare the splits in a dataset_dict.json with the folders below it.

    Args:
        source: The source, for messages.
        folder: Folder of the dataset_dict.json, empty or with a trailing ``/``.
        saved: Folders of saved datasets, each with a trailing ``/``.
        read: Returns a file's content.

    Raises:
        TextError: If they differ.
    """
    splits = _read(source, f"{folder}{DICT}", read).get("splits")
    if not isinstance(splits, list):
        raise _refused(source, f"a {folder}{DICT} without splits", "save it again with save_to_disk")
    present = {name.removeprefix(folder).rstrip("/") for name in saved if name.startswith(folder)}
    for name in sorted({*map(str, splits)} ^ present):
        got = f"no {folder}{name}, which {DICT} lists"
        if name in present:
            got = f"{folder}{name}, which {DICT} does not list"
        raise _refused(source, got, "restore or remove the split, or name the folder of one split")


def _read(source: str, name: str, read: Callable[[str], bytes]) -> dict[str, Any]:
    try:
        return parse_object(decode(read(name)))
    except ReadError as error:
        raise TextError(
            f"source {source}", got=f"{name}: {error.got}", rule=error.rule, remedy=error.remedy
        ) from error


def _is_part(item: Mapping[str, Any]) -> bool:
    return bool(item.get("skip")) or item.get("take", -1) not in (None, -1)


def _has_transforms(history: object) -> bool:
    return isinstance(history, list) and any(
        not isinstance(entry, dict) or bool(entry.get("transforms")) for entry in history
    )


def _refused(source: str, got: str, remedy: str) -> TextError:
    return TextError(
        f"source {source}",
        got=got,
        rule="must be a folder saved by the datasets library, with the rows as in its files",
        remedy=f"{remedy[:1].upper()}{remedy[1:]}.",
    )
