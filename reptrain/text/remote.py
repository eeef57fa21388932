"""Remote files: listing them by URL, and copying them into the work folder."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from reptrain.errors import ReptrainError, TextError
from reptrain.files import is_full

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_PACKAGES = {"s3": "reptrain[s3]", "s3a": "reptrain[s3]", "gs": "reptrain[gs]", "gcs": "reptrain[gs]"}
_CHECKSUMS = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest")
_TIMES = ("LastModified", "Last-Modified", "last_modified", "mtime", "modified", "created")
_DOWNLOADS = 8
_SILENT_SECONDS = 300


class RemoteFile(NamedTuple):
    """A file on a server. Size and version are None if the server does not report them."""

    address: str
    url: str
    size: int | None
    version: str | None


class Listing(NamedTuple):
    """The files at a URL, by their names below it. ``folder`` is None if the URL is a single file."""

    url: str
    folder: str | None
    files: dict[str, RemoteFile]
    read: Callable[[str], bytes]


def is_url(source: str) -> bool:
    """Whether a source is a URL."""
    return _URL.match(source) is not None


def local_path(source: str) -> str | None:
    """The path of a file:// URL; None for other URLs."""
    scheme, _, path = source.partition("://")
    return path if scheme.lower() in ("file", "local") else None


def without_credentials(address: str) -> str:
    """A URL without user, password, query and fragment.

    https://me:secret@host/a.jsonl?X-Signature=abc  ->  https://host/a.jsonl
    """
    return re.sub(r"://[^/?#]*@", "://", address).partition("?")[0].partition("#")[0]


def hide_credentials(value: Any) -> Any:
    """A JSON value, without the credentials of the URLs in it.

    >>> hide_credentials(["data.store=ftp://me:secret@host/a", {"seed": 1}])
    ['data.store=ftp://host/a', {'seed': 1}]
    """
    if isinstance(value, dict):
        return {key: hide_credentials(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hide_credentials(item) for item in value]
    match = _URL.search(value) if isinstance(value, str) else None
    return value if match is None else value[: match.start()] + without_credentials(value[match.start() :])


def list_remote(address: str) -> Listing:
    """List the file, the folder, or the files that match a pattern.

    Raises:
        TextError: If there is no file, the server refuses, or a package for the protocol is missing.
    """
    url = without_credentials(address)
    with explained(address):
        files, path = open_file_system(address)
        is_web = address.lower().startswith(("http:", "https:"))
        if "*" in url or (not is_web and any(sign in path for sign in "?[")):
            entries = files.glob(path, detail=True)
            root = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
        elif not is_web and files.isdir(path):
            entries, root = files.find(path, detail=True), path.rstrip("/")
        else:
            remote = _file(address, files.info(path))
            name = url.rstrip("/").rpartition("/")[2]
            return Listing(url, None, {name: remote}, lambda _: b"")
        prefix = address[: -len(path)] if address.endswith(path) else ""
        listed = {}
        for name, info in sorted(entries.items()):
            if info["type"] == "file":
                details = files.info(name) if is_web else info
                listed[name.removeprefix(root).lstrip("/")] = _file(prefix + name, details)
    if not listed:
        raise TextError(
            f"source {url}", got="none", rule="must match a file", remedy="Check the address and the pattern."
        )
    folder = without_credentials(root).rpartition("/")[2]
    return Listing(url, folder, listed, lambda name: bytes(files.cat_file(f"{root}/{name}")))


class Wanted(NamedTuple):
    """A remote file and the path of its copy."""

    remote: RemoteFile
    path: Path


def copy_name(remote: RemoteFile, suffix: str, number: int) -> str:
    """The name of a copy. It depends on the content's version on the server, not on credentials.

    Args:
        remote: The file.
        suffix: Suffix of the name.
        number: Distinguishes files whose URLs differ only in the query.
    """
    identity = repr((remote.url, remote.size, remote.version, number))
    return hashlib.sha256(identity.encode()).hexdigest()[:32] + suffix


def fetch(wanted: Sequence[Wanted], progress: Callable[[int, int], None]) -> None:
    """Copy the missing files, several at a time. Each appears when it is complete.

    Args:
        wanted: Files and paths, all in one folder.
        progress: Called with the bytes copied and all bytes.

    Raises:
        TextError: If a file cannot be fetched, naming its URL. Complete copies are kept.
    """
    from concurrent.futures import ThreadPoolExecutor

    total = sum(item.remote.size or 0 for item in wanted)
    left = [item for item in wanted if not item.path.exists()]
    count = _Count(total - sum(item.remote.size or 0 for item in left), total, progress)
    count.add(0)
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        futures = [pool.submit(_fetch_one, item, count) for item in left]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


class _Count:
    def __init__(self, done: int, total: int, progress: Callable[[int, int], None]) -> None:
        self._done, self._total, self._progress = done, total, progress
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self._done += num_bytes
            # If a server reports no size, the total is unknown until the end.
            self._total = max(self._total, self._done)
            self._progress(self._done, self._total)


def _fetch_one(item: Wanted, count: _Count) -> None:
    from fsspec.callbacks import Callback

    class Counted(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            count.add(inc)

    remote, path = item
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with explained(remote.address):
            files, inner = open_file_system(remote.address)
            files.get_file(inner, str(temporary), callback=Counted())
        size = temporary.stat().st_size
        if size == 0 or size != (remote.size or size):
            raise TextError(
                f"source {remote.url}",
                got=f"{size} bytes" + (f" where the server reports {remote.size}" if remote.size else ""),
                rule="must be downloaded completely",
                remedy="Run the same command again; it keeps the complete copies.",
            )
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it; call it inside `explained`."""
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {}
    if address.lower().startswith(("http:", "https:")):
        from aiohttp import ClientTimeout

        # A large file takes longer than aiohttp's default limit of five minutes.
        timeout = ClientTimeout(total=None, sock_connect=60, sock_read=_SILENT_SECONDS)
        options = {"client_kwargs": {"timeout": timeout}, "headers": {"Accept-Encoding": "identity"}}
    files, path = url_to_fs(address, **options)
    # Listings may have changed.
    files.invalidate_cache()
    return files, str(path)


def _file(address: str, info: Mapping[str, Any]) -> RemoteFile:
    version = next((f"{key} {info[key]}" for key in (*_CHECKSUMS, *_TIMES) if info.get(key)), None)
    size = info.get("size")
    return RemoteFile(address, without_credentials(address), None if size is None else int(size), version)


_KEEPS_COPIES = "Check the address and your access to it; the same command keeps the complete copies."


@contextmanager
def explained(
    address: str,
    *,
    what: str = "source",
    rule: str = "must be downloaded completely",
    remedy: str = _KEEPS_COPIES,
) -> Iterator[None]:
    """Turn exceptions of a protocol's package into one error that names the URL.

    Args:
        address: The URL.
        what: What it is, for the message.
        rule: The rule that a failure breaks.
        remedy: How to fix it.

    Raises:
        TextError: For everything except a full disk.
    """
    url = without_credentials(address)
    try:
        yield
    except ImportError as error:
        scheme = address.partition("://")[0].lower()
        raise TextError(
            f"{what} {url}",
            got=f"none for {scheme}://",
            rule="must have a package installed for its protocol",
            remedy=f"pip install '{_PACKAGES[scheme]}'." if scheme in _PACKAGES else f"{error}.",
        ) from error
    except Exception as error:
        if isinstance(error, ReptrainError) or is_full(error):
            raise
        raise TextError(f"{what} {url}", got=_reason(error, address), rule=rule, remedy=remedy) from error


def _reason(error: BaseException, address: str) -> str:
    """The reason given by a server or package, without the address, which may hold a password."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(status := getattr(cause, "status", None), int):
            return f"HTTP status {status} {getattr(cause, 'message', '')}".rstrip()
        cause = cause.__cause__ or cause.__context__
    # fsspec reports a refused connection as a missing file; its cause has the reason.
    shown = (isinstance(error, FileNotFoundError) and error.__cause__) or error
    if without_credentials(address) != address or not str(shown):
        return type(shown).__name__
    return f"{type(shown).__name__}: {str(shown).splitlines()[0]}"
