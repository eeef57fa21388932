"""The files of folders and globs: follows links, detects loops, and skips no entry silently."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from reptrain.errors import TextError
from reptrain.reading import escape_name

_MAGIC = re.compile(r"[*?[]")


class Glob(NamedTuple):
    """A pattern: the folder before the first part with a wildcard, and the parts from there on."""

    folder: Path
    parts: tuple[str, ...]


def has_magic(source: str) -> bool:
    """Whether a source has a wildcard: ``*``, ``?`` or ``[``."""
    return _MAGIC.search(source) is not None


def split_glob(source: str) -> Glob:
    """Split a pattern. A part that exists as a name is not a pattern: ``my [v2]/*.jsonl``."""
    folder, parts = Path(), Path(source).parts
    for place, part in enumerate(parts):
        if has_magic(part) and not (folder / part).exists():
            return Glob(folder, parts[place:])
        folder /= part
    return Glob(folder, ())


def files_below(folder: Path) -> dict[str, Path]:
    """All entries below a folder except for folders and hidden entries, sorted by name.

    Links to folders are followed. A file that is reached twice, by a link and its own name or by two links,
    is listed once, by its own name if that is below the folder.

    Returns:
        Paths by their names below the folder, with ``/``. Bytes in names that are not UTF-8 are escaped.

    Raises:
        TextError: If a folder cannot be read.
    """
    return _sorted(_below(_Entry.root(folder)))


def files_matching(glob: Glob) -> dict[str, Path]:
    """The files that match a pattern, as in `files_below`. A folder stands for the files below it.

    A part matches a hidden name only if the part begins with a dot.

    Raises:
        TextError: If a folder cannot be read.
    """
    return _sorted(_match(_Entry.root(glob.folder), glob.parts))


class _Entry(NamedTuple):
    path: Path
    name: str
    """Its path below the source; empty for the source itself."""
    real: str
    is_linked: bool
    """Whether it was reached through a link."""

    @classmethod
    def root(cls, folder: Path) -> _Entry:
        return cls(folder, "", os.path.realpath(folder), False)

    def inner(self, entry: os.DirEntry[str]) -> _Entry:
        path, name, is_link = self.path / entry.name, escape_name(entry.name), entry.is_symlink()
        real = os.path.realpath(path) if is_link else f"{self.real}/{entry.name}"
        return _Entry(path, f"{self.name}/{name}" if self.name else name, real, self.is_linked or is_link)


def _below(folder: _Entry) -> Iterator[_Entry]:
    for place, entries in _folders(folder):
        yield from (place.inner(entry) for entry in entries if not _is_folder(entry))


def _match(folder: _Entry, parts: Sequence[str]) -> Iterator[_Entry]:
    head, *rest = parts
    if head == "**":
        if not rest:
            yield from _below(folder)
            return
        for place, _ in _folders(folder):
            yield from _match(place, rest)
        return
    for entry in _entries(folder.path):
        if entry.name != head and (
            not fnmatchcase(entry.name, head) or (entry.name.startswith(".") and not head.startswith("."))
        ):
            continue
        if not _is_folder(entry):
            if not rest:
                yield folder.inner(entry)
        elif rest:
            yield from _match(folder.inner(entry), rest)
        else:
            yield from _below(folder.inner(entry))


def _folders(folder: _Entry) -> Iterator[tuple[_Entry, list[os.DirEntry[str]]]]:
    """A folder and those below it, each once, with their entries; linked folders come last."""
    seen: set[str] = set()
    own, linked = [folder], list[_Entry]()
    while own or linked:
        place = (own or linked).pop()
        if place.real in seen:
            continue
        seen.add(place.real)
        entries = [entry for entry in _entries(place.path) if not entry.name.startswith(".")]
        yield place, entries
        for entry in entries:
            if _is_folder(entry):
                (linked if entry.is_symlink() else own).append(place.inner(entry))


def _sorted(files: Iterable[_Entry]) -> dict[str, Path]:
    """The files by name. A file with two names keeps its own, then the shallowest, then the first."""
    by_real: dict[str, _Entry] = {}
    for file in files:
        if file.real not in by_real or _rank(file) < _rank(by_real[file.real]):
            by_real[file.real] = file
    files_by_name: dict[str, Path] = {}
    for file in sorted(by_real.values(), key=lambda file: file.name):
        if file.name in files_by_name:
            raise _refused(file.path, f"two files that are called {file.name}", "must have names that differ")
        files_by_name[file.name] = file.path
    return files_by_name


def _rank(file: _Entry) -> tuple[bool, int, str]:
    return file.is_linked, file.name.count("/"), file.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself; opening it will fail with a clear error.
        return False


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _refused(folder, str(error.strerror), "must be a folder that can be read") from error


def _refused(path: Path, got: str, rule: str) -> TextError:
    return TextError(
        f"source {escape_name(str(path))}",
        got=got,
        rule=rule,
        remedy="Check its permissions and name, or choose the files by a glob in quotes.",
    )
