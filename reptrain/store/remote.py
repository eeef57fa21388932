"""Stores in object storage (s3://, gs://), read through a cache on the local disk.

The cache holds a folder for each store: its manifest and tokenizer, and the shards that were read so far. A
shard is fetched when it is first read, in blocks, so that a broken connection continues where it was cut. It
counts only once its size and SHA-256 are those of the manifest. Processes that read a shard hold a shared
lock on its file; the least recently opened shards without a lock are removed when the cache is full.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

from reptrain.errors import ConfigError, StoreError, TextError
from reptrain.files import read_small, write_atomically
from reptrain.store.manifest import MANIFEST, Shard, read_manifest
from reptrain.text.remote import explained, open_file_system, without_credentials

if TYPE_CHECKING:
    from filelock import FileLock

FOLDER_VARIABLE, LIMIT_VARIABLE = "REPTRAIN_STORE_CACHE", "REPTRAIN_STORE_CACHE_GB"
_DEFAULT_LIMIT_GB = 100.0
_ADDRESS = "address"
_BLOCK_BYTES = 8 << 20
_ATTEMPTS = 6
_PAUSE_S = 0.5
# A pathlib path has one slash where the address has two.
_COLLAPSED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?=[^/])")
# Trying again does not help.
_FINAL = (FileNotFoundError, PermissionError, ImportError)
_REMEDY = "Check the address and your access to it; the same command keeps what was fetched."


def address_of(store: str | Path) -> str | None:
    """The address of a remote store, also from a path that was made of it; None for a local folder."""
    text = str(store)
    if "://" in text:
        scheme, _, rest = text.partition("://")
    else:
        match = _COLLAPSED.match(text)
        if match is None:
            return None
        scheme, rest = match[1], text[match.end() :]
        # The only addresses whose path is absolute.
        rest = f"/{rest}" if scheme.lower() in ("file", "local") else rest
    return f"{scheme}://{rest.rstrip('/')}"


def local_folder(store: str | Path) -> Path:
    """The folder of a store: its own, or its folder in the cache, which may not exist yet."""
    address = address_of(store)
    if address is None:
        return Path(store)
    url = without_credentials(address)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", url.rpartition("/")[2])[:80]
    return _cache() / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def _locked(path: Path) -> FileLock:
    from filelock import FileLock

    return FileLock(path)


def _cache() -> Path:
    import platformdirs

    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given) if given else Path(platformdirs.user_cache_dir("reptrain")) / "stores"


def _limit_bytes() -> int:
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        limit = float(text) if text else _DEFAULT_LIMIT_GB
    except ValueError:
        limit = -1.0
    if not 0 < limit < 1e9:
        raise ConfigError(
            LIMIT_VARIABLE,
            got=repr(text),
            rule="must be a positive number of GB",
            remedy=f"Leave it out for {_DEFAULT_LIMIT_GB:g} GB.",
        )
    return int(limit * 1e9)


def open_remote(store: str | Path) -> RemoteStore | None:
    """Fetch the manifest and the tokenizer of a remote store; None for a local folder.

    Args:
        store: Its address, or its folder in the cache.

    Raises:
        StoreError: If the store cannot be read, or is not a sealed one.
    """
    address, folder = address_of(store), local_folder(store)
    if address is None:
        if not (folder / _ADDRESS).is_file():
            return None
        address = read_small(folder / _ADDRESS).decode().strip()
    remote = RemoteStore(address, folder)
    remote.fetch_contents()
    return remote


class RemoteStore:
    """A store in object storage and its folder in the cache.

    Args:
        address: Its address.
        folder: Its folder in the cache.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self.url, self.folder = without_credentials(address), folder
        self._address = address
        self._manifest = b""

    def fetch_contents(self) -> None:
        """Fetch the manifest and the tokenizer. A store that was replaced loses its cached shards."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / ".lock"):
            self._manifest = self._read(MANIFEST)
            cached = self.folder / MANIFEST
            if not cached.exists() or cached.read_bytes() != self._manifest:
                cached.unlink(missing_ok=True)
                for path in self.folder.iterdir():
                    if path.is_file() and path.suffix != ".lock":
                        path.unlink()
                # Credentials of the address stay with the process.
                write_atomically(self.folder / _ADDRESS, self.url + "\n")
                write_atomically(cached, self._manifest)
            tokenizer = read_manifest(self.folder).tokenizer_file
            if not (self.folder / tokenizer).exists():
                write_atomically(self.folder / tokenizer, self._read(tokenizer))

    def open(self, shard: Shard) -> IO[bytes]:
        """Fetch a shard if it is not in the cache, and keep it there while the returned file is open.

        Args:
            shard: The shard's entry in the manifest.

        Raises:
            StoreError: If it cannot be fetched, differs from the manifest, or does not fit into the cache, or
                if another process has found another store at the address since.
        """
        path = self.folder / shard.file
        while True:
            held = _hold(path)
            if held is not None:
                with _closed_on_error(held):
                    self._refuse_replaced()
                return held
            with _locked(self.folder / f".{shard.file}.lock"):
                if not path.exists():
                    self._fetch(shard, path)

    def _fetch(self, shard: Shard, path: Path) -> None:
        partial = path.with_name(f".{path.name}.part")
        _make_room(max(0, shard.bytes - _size(partial)), shard.file)
        self._download(shard.file, partial, shard.bytes)
        # A local store is opened without NumPy.
        from reptrain.store.hashing import file_sha256

        if file_sha256(partial) != shard.sha256:
            partial.unlink()
            raise StoreError(
                f"store file {self.url}/{shard.file}",
                got="content that differs from the manifest",
                rule="must be unchanged since the store was completed",
                remedy="Copy the store again, or rebuild it with `reptrain tokenize`.",
            )
        with _locked(self.folder / ".lock"):
            self._refuse_replaced()
            partial.replace(path)

    def _refuse_replaced(self) -> None:
        """Refuse a folder whose manifest is no longer the one that this process has read."""
        try:
            current = read_small(self.folder / MANIFEST)
        except FileNotFoundError:
            current = b""
        if current != self._manifest:
            raise StoreError(
                f"store {self.url}",
                got="another store at this address",
                rule="must not change while it is in use",
                remedy="Restore it, or start again with the new store.",
            )

    def _download(self, name: str, partial: Path, size: int) -> None:
        """Append blocks to a file until it is complete."""
        with partial.open("ab") as file:
            if file.tell() > size:
                file.truncate(0)
            while (done := file.seek(0, os.SEEK_END)) < size:
                file.write(self._read(name, done, min(size, done + _BLOCK_BYTES)))
            file.flush()
            os.fsync(file.fileno())

    def _read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Read a file, or a block of it; a request that fails is repeated, with growing pauses."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._request(name, start, end)
            except _FINAL as error:
                self._refuse(name, error)
            except Exception as error:
                if attempt == _ATTEMPTS:
                    self._refuse(name, error)
                time.sleep(_PAUSE_S * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    def _request(self, name: str, start: int | None, end: int | None) -> bytes:
        files, inner = open_file_system(self._address)
        block = bytes(files.cat_file(f"{inner}/{name}", start=start, end=end))
        if end is not None and start is not None and len(block) != end - start:
            raise ConnectionError(f"{len(block)} of {end - start} bytes")
        return block

    def _refuse(self, name: str, error: Exception) -> NoReturn:
        try:
            with explained(
                f"{self._address}/{name}", what="store file", rule="must be readable", remedy=_REMEDY
            ):
                raise error
        except TextError as explained_error:
            raise StoreError(
                explained_error.what,
                got=explained_error.got,
                rule=explained_error.rule,
                remedy=explained_error.remedy,
            ) from error
        raise AssertionError


def _hold(path: Path) -> IO[bytes] | None:
    """Open a cached shard with a shared lock; None if it is missing, or was removed in between."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with _closed_on_error(file):
        fcntl.flock(file, fcntl.LOCK_SH)
        try:
            status = path.stat()
            is_current = os.path.samestat(status, os.fstat(file.fileno()))
        except FileNotFoundError:
            is_current = False
    if not is_current:
        file.close()
        return None
    # The file of another user keeps its time.
    with suppress(PermissionError):
        # The time of access orders the removal. The time of change stays.
        os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
    return file


@contextmanager
def _closed_on_error(file: IO[bytes]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        file.close()
        raise


def _size(path: Path) -> int:
    """Size of a file; 0 if another process has removed it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _last_use(path: Path) -> int:
    try:
        return path.stat().st_atime_ns
    except FileNotFoundError:
        return 0


def _make_room(size: int, name: str) -> None:
    """Remove the least recently opened shards of all stores until ``size`` more bytes are within the limit.

    Raises:
        StoreError: If the shards that are in use leave too little room.
    """
    limit, cache = _limit_bytes(), _cache()
    with _locked(cache / ".lock"):
        shards = sorted(cache.glob("*/*.arrow"), key=_last_use)
        used = sum(map(_size, (*shards, *cache.glob("*/.*.part"))))
        for path in shards:
            if used + size <= limit:
                return
            # Another process may hold it, or have removed it.
            with suppress(BlockingIOError, FileNotFoundError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                freed = _size(path)
                path.unlink()
                used -= freed
        if used + size > limit:
            raise StoreError(
                f"cache of stores {cache}",
                got=f"{used:,} bytes in use, and {size:,} more for {name}",
                rule=f"must be within {limit:,} bytes",
                remedy=f"Set {LIMIT_VARIABLE} to more GB, or {FOLDER_VARIABLE} to a folder on a larger disk.",
            )
