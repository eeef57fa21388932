"""From what the user names to files: paths, folders, globs and URLs."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from reptrain.config.base import check_name
from reptrain.errors import TextError
from reptrain.files import parse_json
from reptrain.store.remote import RemoteFile, Wanted, copy_name, fetch, is_url, list_remote, local_path
from reptrain.text.documents import SUFFIXES, file_bytes, no_bytes, source_name, suffix_of, unknown_kind

_COMPANIONS = ("readme", "license", "_success", "_metadata", "_common_metadata", "dataset_info")
_MOST_NAMED = 5


class SourceFile(NamedTuple):
    """A file to read: ``name`` is its place below the source, ``label`` the same with the source.

    A remote file has a ``url`` without what gives access to it, ``address`` with it, and the ``version`` that
    the server told; ``size`` is 0 where it told none. Its ``path`` is where it will lie once it is fetched.
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
        """What changes when the file may have changed."""
        if self.url is not None:
            return [self.url, self.size, self.version]
        return [str(self.path.resolve()), self.size, self.path.stat().st_mtime_ns]


def expand_sources(sources: Sequence[str | Path]) -> list[SourceFile]:
    """The files of all sources, in order; a folder or glob stands for its text files, sorted.

    A folder that the `datasets` library saved stands for the files that its state.json lists.

    Raises:
        TextError: If a file is missing, empty or of another kind, a folder holds none or others too, a glob
            matches nothing, or a server cannot be asked.
    """
    return [file for source in sources for file in _expand(str(source))]


def _expand(source: str) -> Iterator[SourceFile]:
    if is_url(source):
        local = local_path(source)
        yield from _remote(source) if local is None else _expand(local)
        return
    path = Path(source)
    if path.is_dir():
        names = [item.relative_to(path).as_posix() for item in path.rglob("*") if item.is_file()]
        yield from _below(path, source, names)
    elif glob.has_magic(source) and not path.exists():
        fixed = list(_fixed(path.parts))
        folder, pattern = Path(*fixed), "/".join(path.parts[len(fixed) :])
        # A closing ** means folders alone to pathlib before Python 3.13.
        found = folder.glob(pattern + "/*" if pattern.endswith("**") else pattern)
        names = [item.relative_to(folder).as_posix() for item in found if item.is_file()]
        if not names:
            raise _no_match(source)
        yield from _below(folder, source, names)
    else:
        yield SourceFile(path, path.name, path.name, source_name(path), file_bytes(path))


def _below(folder: Path, source: str, names: Sequence[str]) -> Iterator[SourceFile]:
    label = folder.resolve().name
    for name in select(source, names, lambda inner: (folder / inner).read_bytes()):
        path = folder / name
        yield SourceFile(path, name, f"{label}/{name}", label, file_bytes(path))


def _remote(url: str) -> Iterator[SourceFile]:
    listing = list_remote(url)
    names = list(listing.files)
    if listing.folder is not None:
        names = select(listing.url, names, listing.read)
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
    """The files with the remote ones among them copied to a folder; copies of others there are removed.

    Raises:
        TextError: If one cannot be fetched.
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
    """The text files among those below a folder, sorted; of a saved dataset what its state.json lists.

    Args:
        source: The folder, for messages.
        names: Relative paths of all files in it.
        read: Gives a file's content.

    Raises:
        TextError: If there are none, or files of a kind that cannot be read beside them.
    """
    shown = sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))
    saved = {name[: -len("state.json")] for name in shown if PurePosixPath(name).name == "state.json"}
    listed = [folder + name for folder in sorted(saved) for name in _data_files(source, folder, read)]
    others = [
        name
        for name in shown
        if _folder(name) not in saved and not (saved and PurePosixPath(name).name == "dataset_dict.json")
    ]
    unknown = [
        name
        for name in others
        if suffix_of(name) is None and not PurePosixPath(name).name.lower().startswith(_COMPANIONS)
    ]
    chosen = listed + [name for name in others if suffix_of(name) is not None]
    if not chosen:
        raise TextError(
            f"source {source}",
            got=_some(unknown) if unknown else "none",
            rule=f"must hold files that end in {', '.join(SUFFIXES)}",
            remedy="Name the files or another folder.",
        )
    if unknown:
        raise TextError(
            f"source {source}",
            got=f"{_some(unknown)} beside {len(chosen)} that can be read",
            rule=f"must hold files that end in {', '.join(SUFFIXES)} alone",
            remedy="Choose by a glob in quotes, such as 'FOLDER/**/*.jsonl', or take the others away.",
        )
    return chosen


def _data_files(source: str, folder: str, read: Callable[[str], bytes]) -> list[str]:
    try:
        data_files = parse_json(read(f"{folder}state.json"))["_data_files"]
        return [check_name(str(item["filename"])) for item in data_files]
    except (ValueError, KeyError, TypeError) as error:
        raise TextError(
            f"source {source}",
            got=f"a {folder}state.json without _data_files",
            rule="must be a folder that the datasets library saved",
            remedy="Save it again with save_to_disk, or name its data files.",
        ) from error


def _folder(name: str) -> str:
    head, slash, _ = name.rpartition("/")
    return head + slash


def _fixed(parts: Sequence[str]) -> Iterator[str]:
    """The parts of a pattern before the first that is one."""
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _no_match(source: str) -> TextError:
    return TextError(
        f"source {source}",
        got="none",
        rule="must match a file",
        remedy="Check the pattern; ** stands for any folders below.",
    )
