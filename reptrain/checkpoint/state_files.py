"""State files of a checkpoint: safetensors files that hold pieces of parameters.

A tensor is named `KIND:NAME@START`: elements of the flattened parameter NAME, beginning at START. A piece can
therefore be read from pieces of any other partition, written by any number of ranks at any ZeRO stage.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open

from reptrain.checkpoint.state import Piece
from reptrain.errors import ResumeError

_FLOAT_BYTES = 4
_CHUNK_BYTES = 1 << 20


class FileSum(BaseModel):
    """Size and checksum that a file must have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    """Size of the file."""
    sha256: str
    """SHA-256 of its content."""

    def begins(self, path: Path) -> bool:
        """Whether the first `bytes` bytes of a file have this checksum."""
        digest, left = hashlib.sha256(), self.bytes
        try:
            with path.open("rb") as file:
                while left and (part := file.read(min(left, _CHUNK_BYTES))):
                    digest.update(part)
                    left -= len(part)
        except OSError:
            return False
        return left == 0 and digest.hexdigest() == self.sha256

    def problem(self, path: Path) -> str | None:
        """Description of the mismatch, or None if the file is intact."""
        try:
            size = path.stat().st_size
            if size != self.bytes:
                return f"{path.name} has {size:,} bytes instead of {self.bytes:,}"
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return f"{path.name}: {error.strerror}"
        return None if actual == self.sha256 else f"{path.name} does not match its checksum"


def write_pieces(path: Path, held: Sequence[Piece]) -> FileSum:
    """Write pieces to a file and flush it to disk.

    Tensors are hashed and written one at a time: the checksum covers the bytes in memory, and at most one
    tensor is copied at a time.

    Raises:
        OSError: If the disk is full.
    """
    tensors = {f"{kind}:{p.name}@{p.start}": view for p in held for kind, view in p.views.items()}
    entries, end = {}, 0
    for key, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * _FLOAT_BYTES
        entries[key] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(header).to_bytes(8, "little"), header):
            digest.update(part)
            file.write(part)
        for tensor in tensors.values():
            values = tensor.to("cpu", torch.float32).contiguous().numpy().data
            digest.update(values)
            file.write(values)
        file.flush()
        os.fsync(file.fileno())
    return FileSum(bytes=8 + len(header) + end, sha256=digest.hexdigest())


def copy_file(source: Path, target: Path) -> FileSum:
    """Copy a file and flush the copy to disk. A missing source counts as an empty file.

    Raises:
        OSError: If the disk is full.
    """
    digest, size = hashlib.sha256(), 0
    with (source if source.exists() else Path(os.devnull)).open("rb") as read, target.open("wb") as write:
        while part := read.read(_CHUNK_BYTES):
            digest.update(part)
            write.write(part)
            size += len(part)
        write.flush()
        os.fsync(write.fileno())
    return FileSum(bytes=size, sha256=digest.hexdigest())


class _Written(NamedTuple):
    path: Path
    key: str
    start: int
    end: int


def read_pieces(paths: Iterable[Path], wanted: Sequence[Piece]) -> None:
    """Fill pieces from the state files of a checkpoint.

    Args:
        paths: All state files of the checkpoint.
        wanted: The pieces; their views are filled in place.

    Raises:
        ResumeError: If no file holds some element of a piece.
    """
    written = _index(paths)
    opened: dict[Path, Any] = {
        path: safe_open(path, "pt") for parts in written.values() for path in {w.path for w in parts}
    }
    for piece in wanted:
        first = piece.start
        for kind, view in piece.views.items():
            last, missing = first + view.numel(), view.numel()
            for source in written[kind, piece.name]:
                begin, end = max(first, source.start), min(last, source.end)
                if begin < end:
                    stored = opened[source.path].get_slice(source.key)
                    values = stored[begin - source.start : end - source.start]
                    view[begin - first : end - first].copy_(values)
                    missing -= end - begin
            if missing:
                raise ResumeError(
                    f"{kind} of {piece.name}",
                    got=f"{missing:,} elements missing from the checkpoint's files",
                    rule="must be complete in the checkpoint",
                    remedy="Use an older checkpoint.",
                )


def _index(paths: Iterable[Path]) -> dict[tuple[str, str], list[_Written]]:
    written: dict[tuple[str, str], list[_Written]] = defaultdict(list)
    for path in paths:
        file: Any
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - a safetensors file is not a mapping
                kind, _, rest = key.partition(":")
                name, _, start = rest.rpartition("@")
                numel = file.get_slice(key).get_shape()[0]
                written[kind, name].append(_Written(path, key, int(start), int(start) + numel))
    return written
