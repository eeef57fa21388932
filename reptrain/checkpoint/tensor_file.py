"""Safetensors files written a tensor at a time, so that only one of them has to be in memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

_CHUNK_BYTES, _PART_BYTES = 1 << 20, 1 << 24
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


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


class StoredTensor(NamedTuple):
    """A tensor of a file."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], Tensor]
    """Returns it, of `shape`, on any device and in any dtype. Called once, when it is written."""


def write_tensors(
    path: Path,
    tensors: Sequence[StoredTensor],
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> FileSum:
    """Write tensors to a file and flush it to disk.

    They are hashed and written one at a time: the checksum covers the bytes in memory, and at most one tensor
    is copied at a time.

    Args:
        path: The file.
        tensors: Its tensors, in order.
        dtype: dtype of all of them in the file.
        metadata: More values of the header.
        tick: Called after each part that is written, as a sign of progress.

    Raises:
        OSError: If the disk is full.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for tensor in tensors:
        begin, end = end, end + prod(tensor.shape) * dtype.itemsize
        entries[tensor.name] = {
            "dtype": _DTYPES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(header).to_bytes(8, "little"), header):
            digest.update(part)
            file.write(part)
        for tensor in tensors:
            values = tensor.values().detach().to("cpu", dtype).contiguous()
            content = values.reshape(-1).view(torch.uint8).numpy().data
            for first in range(0, len(content), _PART_BYTES):
                part_of_it = content[first : first + _PART_BYTES]
                digest.update(part_of_it)
                file.write(part_of_it)
                tick()
            del values, content
        file.flush()
        os.fsync(file.fileno())
    return FileSum(bytes=8 + len(header) + end, sha256=digest.hexdigest())
