"""Reading and writing whole files at a path, or at a URL of any file system that fsspec knows."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from reptrain.files import write_atomically
from reptrain.text.remote import explained, is_url, local_path, open_file_system

Address = str | Path
"""A path, or a URL such as ``s3://bucket/tables``."""


def as_path(address: Address) -> Path | None:
    """The local path; None for a remote URL."""
    if isinstance(address, Path):
        return address
    local = local_path(address) if is_url(address) else address
    return None if local is None else Path(local)


def below(folder: Address, name: str) -> Address:
    """A file in a folder."""
    path = as_path(folder)
    return f"{str(folder).rstrip('/')}/{name}" if path is None else path / name


def beside(address: Address, name: str) -> Address:
    """Another file in the same folder."""
    path = as_path(address)
    return f"{str(address).rpartition('/')[0]}/{name}" if path is None else path.with_name(name)


def read_bytes(address: Address) -> bytes:
    """The content of a file.

    Raises:
        OSError: If a path cannot be read.
        TextError: If a URL cannot be read.
    """
    path = as_path(address)
    if path is not None:
        return path.read_bytes()
    with _explained(str(address), "must be readable"):
        files, inside = open_file_system(str(address))
        return bytes(files.cat_file(inside))


def write_bytes(data: bytes, address: Address) -> None:
    """Write a file; on this machine atomically.

    Raises:
        TextError: If a URL cannot be written.
    """
    path = as_path(address)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
        return
    with _explained(str(address), "must be writable"):
        files, inside = open_file_system(str(address))
        files.makedirs(inside.rpartition("/")[0], exist_ok=True)
        files.pipe_file(inside, data)


def _explained(address: str, rule: str) -> AbstractContextManager[None]:
    return explained(address, what="file", rule=rule, remedy="Check the address and your access to it.")
