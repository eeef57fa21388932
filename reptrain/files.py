"""Atomic file operations."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_UNFINISHED = ".part"
_FLUSHES = 16


def is_full(error: BaseException) -> bool:
    """Whether an error means that the disk or the quota is full."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def absolute(place: str) -> str:
    """The absolute path of a file or folder; the address of a remote one as it is.

    >>> absolute("s3://bucket/stores/c4")
    's3://bucket/stores/c4'
    """
    return place if "://" in place else str(Path(place).absolute())


def write_atomically(path: Path, data: str | bytes | Iterable[str], *, flush: bool = True) -> None:
    """Write under a temporary name in the same folder, flush to the disk, and rename.

    Args:
        path: The file to create or replace.
        data: Its content; an iterable of strings is concatenated.
        flush: Whether it must survive a power loss.

    Raises:
        OSError: If the disk is full, the folder is not writable, or ``path`` is a device or a folder;
            ``path`` is then unchanged.
    """
    pieces = [data] if isinstance(data, (str, bytes)) else data
    with replacing(path, flush=flush) as file:
        for piece in pieces:
            file.write(piece.encode() if isinstance(piece, str) else piece)


def read_small(path: Path, most_bytes: int = 2**26) -> bytes:
    """The content of a small file.

    Args:
        path: The file.
        most_bytes: Limit, so that a large file or an endless device does not fill the memory.

    Raises:
        OSError: If it cannot be read, or is larger (EFBIG).
    """
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes} bytes", str(path))
    return content


@contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[IO[bytes]]:
    """A file under a temporary name in the same folder, renamed at the end if no exception was raised.

    Args:
        path: The file to create or replace.
        flush: Whether it must survive a power loss.

    Raises:
        OSError: If the disk is full, the folder is not writable, or ``path`` is a device or a folder;
            ``path`` is then unchanged.
    """
    if path.exists() and not path.is_file():
        # A rename would replace a device such as /dev/null by a file.
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if flush:
                os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, temporary):
            error.filename = str(path)
        raise
    if flush:
        flush_folder(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files of killed writers. No other process may write in the folder."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)


def flush_files(paths: Iterable[Path]) -> None:
    """Flush files to the disk, many at the same time: together they take little longer than one.

    Args:
        paths: Files that were written and closed.

    Raises:
        OSError: If the disk is full.
    """
    # Few commands need it.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_FLUSHES) as pool:
        for _ in pool.map(_flush, paths):
            pass


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power loss."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    # The mask can only be read by setting it; `mkstemp` creates files that only the user can read.
    mask = os.umask(0)
    os.umask(mask)
    return mask
