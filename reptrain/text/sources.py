"""The files of sources: paths, folders, globs and URLs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from reptrain.errors import TextError
from reptrain.reading import escape_name
from reptrain.text.documents import SUFFIXES, file_bytes, no_bytes, source_name, suffix_of, unknown_kind
from reptrain.text.remote import RemoteFile, Wanted, copy_name, fetch, is_url, list_remote, local_path
from reptrain.text.saved import DICT, STATE, check_splits, is_cache, saved_files
from reptrain.text.walk import files_below, files_matching, has_magic, split_glob

# Files that describe the data, by name without suffix.
_READMES = ("readme", "license", "licence")
_COMPANIONS = (*_READMES, "copying", "notice", "changelog", "citation", "authors")
_MARKERS = ("_success", "_metadata", "_common_metadata", "dataset_info.json", "dataset_infos.json")
_MOST_NAMED = 5


class SourceFile(NamedTuple):
    """A file to read: ``name`` is its path below the source, ``label`` the same with the source's name.

    A remote file has a ``url`` without credentials, an ``address`` with them, and the ``version`` that the
    server reports; ``size`` is 0 if it reports none. Its ``path`` is valid once it is fetched.
    """

    path: Path
    name: str
    label: str
    source: str
    size: int
    url: str | None = None
    version: str | None = None
    address: str | None = None

    @property
    def identity(self) -> list[str | int | None]:
        """Values that change when the file's content may have changed."""
        if self.url is not None:
            return [self.url, self.size, self.version]
        return [escape_name(str(self.path.resolve())), self.size, self.path.stat().st_mtime_ns]


def expand_sources(sources: Sequence[str | Path]) -> list[SourceFile]:
    """The files of all sources, in order. A folder or glob stands for its text files, sorted.

    A folder saved by the `datasets` library stands for the files that its state.json lists. Links are
    followed. Bytes in names that are not UTF-8 are escaped.

    Raises:
        TextError: If a file is missing, empty or of another kind, a folder holds no text file or other files
            too, a glob matches nothing, or a server fails.
    """
    return [file for source in sources for file in _expand(str(source))]


def _expand(source: str) -> Iterator[SourceFile]:
    if is_url(source):
        local = local_path(source)
        yield from _remote(source) if local is None else _expand(local)
        return
    path = Path(source)
    if path.is_dir():
        yield from _below(path, source, files_below(path))
    elif has_magic(source) and not path.exists():
        glob = split_glob(source)
        files = files_matching(glob)
        if not files:
            raise _no_match(source)
        yield from _below(glob.folder, source, files)
    else:
        size, name = file_bytes(path), escape_name(path.name)
        yield SourceFile(path, name, name, escape_name(source_name(path)), size)


def _below(folder: Path, source: str, files: Mapping[str, Path]) -> Iterator[SourceFile]:
    label = escape_name(folder.resolve().name)
    for name in select(escape_name(source), list(files), lambda inner: files[inner].read_bytes()):
        yield SourceFile(files[name], name, f"{label}/{name}", label, file_bytes(files[name]))


def _remote(url: str) -> Iterator[SourceFile]:
    listing = list_remote(url)
    names = list(listing.files)
    if listing.folder is not None:
        shown = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
        names = select(listing.url, shown, listing.read)
    for name in names:
        remote = listing.files[name]
        if suffix_of(name) is None:
            raise unknown_kind(remote.url)
        if remote.size == 0:
            raise no_bytes(remote.url)
        base = PurePosixPath(name).name
        source = listing.folder or source_name(Path(base))
        label = name if listing.folder is None else f"{listing.folder}/{name}"
        yield SourceFile(
            Path(base), name, label, source, remote.size or 0, remote.url, remote.version, remote.address
        )


def fetch_sources(
    files: Sequence[SourceFile], folder: Path, progress: Callable[[int, int], None]
) -> list[SourceFile]:
    """Copy the remote files to a folder, and remove other copies there. Returns all files.

    Raises:
        TextError: If a file cannot be fetched.
    """
    wanted: dict[int, Wanted] = {}
    names: Counter[str] = Counter()
    for index, file in enumerate(files):
        if file.url is not None and file.address is not None:
            remote = RemoteFile(file.address, file.url, file.size or None, file.version)
            names[file.url] += 1
            name = copy_name(remote, suffix_of(file.name) or "", names[file.url])
            wanted[index] = Wanted(remote, folder / name)
    if not wanted:
        return list(files)
    folder.mkdir(exist_ok=True)
    for path in set(folder.iterdir()) - {item.path for item in wanted.values()}:
        path.unlink()
    fetch(list(wanted.values()), progress)
    return [
        file._replace(path=wanted[index].path, size=wanted[index].path.stat().st_size)
        if index in wanted
        else file
        for index, file in enumerate(files)
    ]


def select(source: str, names: Sequence[str], read: Callable[[str], bytes]) -> list[str]:
    """The text files below a folder, sorted; for a saved dataset, those that its state.json lists.

    Args:
        source: The folder, for messages.
        names: Relative paths of all files in it, except for hidden ones.
        read: Returns a file's content.

    Raises:
        TextError: If there are none, or other files among them, or a saved dataset whose state changes its
            rows.
    """
    shown = sorted(names)
    saved = sorted({_folder(name) for name in shown if PurePosixPath(name).name == STATE})
    listed = [
        file
        for folder in saved
        for file in saved_files(
            source,
            folder,
            [name for name in shown if _folder(name) == folder and not _is_companion(name)],
            read,
        )
    ]
    for name in shown:
        if saved and PurePosixPath(name).name == DICT:
            check_splits(source, _folder(name), saved, read)
    others = [name for name in shown if _folder(name) not in saved and not _is_companion(name)]
    unknown = [name for name in others if not _is_data(name)]
    chosen = listed + [name for name in others if _is_data(name)]
    if not chosen:
        raise TextError(
            f"source {source}",
            got=_some(unknown) if unknown else "none",
            rule=f"must hold files that end in {', '.join(SUFFIXES)}",
            remedy="Pass the files or another folder.",
        )
    if unknown:
        raise TextError(
            f"source {source}",
            got=f"{_some(unknown)} beside {len(chosen)} that can be read",
            rule=f"must hold only files that end in {', '.join(SUFFIXES)}",
            remedy="Choose by a glob in quotes, such as 'FOLDER/**/*.jsonl', or move the others away.",
        )
    return chosen


def _is_data(name: str) -> bool:
    return suffix_of(name) is not None and not (name.endswith(".arrow") and is_cache(name))


def _is_companion(name: str) -> bool:
    """Whether a file describes the data: README and LICENSE, also as .txt, and marker files of programs."""
    base = PurePosixPath(name).name.lower()
    stem, _, suffix = base.partition(".")
    is_data = suffix_of(base) is not None and not (suffix == "txt" and stem in _READMES)
    return base in (*_MARKERS, DICT) or (stem in _COMPANIONS and not is_data)


def _folder(name: str) -> str:
    head, slash, _ = name.rpartition("/")
    return head + slash


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _no_match(source: str) -> TextError:
    return TextError(
        f"source {source}",
        got="none",
        rule="must match a file",
        remedy="Check the pattern: ** matches any folders below, and [[] a bracket in a name.",
    )
