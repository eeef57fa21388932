"""Folders that the `datasets` library saved: what their state says of the rows is obeyed or refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from reptrain.errors import TextError
from reptrain.reading import ReadError, decode, parse_object

STATE = "state.json"
DICT = "dataset_dict.json"
# Results of earlier calls of map and filter, and what a writer left behind.
_CACHE = re.compile(r"cache-\w+\.arrow|tmp\w{8}(\.arrow)?")


def is_cache(name: str) -> bool:
    """Whether a file is one that the library keeps beside a data set: the result of a map or a filter."""
    return _CACHE.fullmatch(PurePosixPath(name).name) is not None


def saved_files(source: str, folder: str, names: Sequence[str], read: Callable[[str], bytes]) -> list[str]:
    """The data files of a saved data set, in the order of its state.json.

    Formats are not applied: they change how a row is shown, not which rows there are.

    Args:
        source: The source, for messages.
        folder: The data set's folder below it, empty or with a closing ``/``.
        names: All files in the folder but for those that describe it.
        read: Gives a file's content.

    Raises:
        TextError: If the state chooses or changes rows, or files are there that it does not list.
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
            f"{chosen} in {folder}{STATE}: rows that were chosen from those of its files",
            "save it again with a newer version: load_from_disk(OLD).flatten_indices().save_to_disk(NEW)",
        )
    if any(_is_part(item) for item in items) or _has_transforms(state.get("_inplace_history")):
        raise _refused(
            source,
            f"a {folder}{STATE} that takes a part of its files, or changes their columns",
            "save it again with a newer version: load_from_disk(OLD).save_to_disk(NEW)",
        )
    other = [name for name in names if name not in (*files, f"{folder}{STATE}") and not is_cache(name)]
    if other:
        raise _refused(source, f"{other[0]}, which {folder}{STATE} does not list", "take the file away")
    return files


def check_splits(source: str, folder: str, saved: Sequence[str], read: Callable[[str], bytes]) -> None:
    """Hold the splits that a dataset_dict.json lists against the folders below it.

    Args:
        source: The source, for messages.
        folder: Of the dataset_dict.json, empty or with a closing ``/``.
        saved: Folders of saved data sets, each with a closing ``/``.
        read: Gives a file's content.

    Raises:
        TextError: If they differ.
    """
    splits = _read(source, f"{folder}{DICT}", read).get("splits")
    if not isinstance(splits, list):
        raise _refused(source, f"a {folder}{DICT} without splits", "save it again with save_to_disk")
    there = {name.removeprefix(folder).rstrip("/") for name in saved if name.startswith(folder)}
    for name in sorted({*map(str, splits)} ^ there):
        got = f"no {folder}{name}, which {DICT} lists"
        if name in there:
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
        rule="must be a folder that the datasets library saved, rows as they are in its files",
        remedy=f"{remedy[:1].upper()}{remedy[1:]}.",
    )
