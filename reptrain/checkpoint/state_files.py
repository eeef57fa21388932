"""State files of a checkpoint: safetensors files that hold pieces of parameters.

A tensor is named `KIND:NAME@START`: elements of the flattened parameter NAME, beginning at START. A piece can
therefore be read from pieces of any other partition, written by any number of ranks at any ZeRO stage.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from reptrain.checkpoint.state import Piece
from reptrain.checkpoint.tensor_file import FileSum as FileSum
from reptrain.checkpoint.tensor_file import StoredTensor, write_tensors
from reptrain.errors import ResumeError

_CHUNK_BYTES = 1 << 20


def write_pieces(path: Path, held: Sequence[Piece], tick: Callable[[], None] = lambda: None) -> FileSum:
    """Write pieces to a file, one tensor at a time, and flush it to disk.

    Args:
        path: The file.
        held: The pieces.
        tick: Called now and then, as a sign of progress.

    Raises:
        OSError: If the disk is full.
    """
    return write_tensors(
        path,
        [
            StoredTensor(f"{kind}:{p.name}@{p.start}", (view.numel(),), partial(_itself, view))
            for p in held
            for kind, view in p.views.items()
        ],
        tick=tick,
    )


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def copy_file(source: Path, target: Path, size: int) -> FileSum:
    """Copy the first bytes of a file and flush the copy to disk. A missing source counts as an empty file.

    Args:
        source: The file; it may grow meanwhile.
        target: The copy.
        size: Number of bytes.

    Raises:
        OSError: If the disk is full.
    """
    digest, copied = hashlib.sha256(), 0
    with (source if source.exists() else Path(os.devnull)).open("rb") as read, target.open("wb") as write:
        while part := read.read(min(size - copied, _CHUNK_BYTES)):
            digest.update(part)
            write.write(part)
            copied += len(part)
        write.flush()
        os.fsync(write.fileno())
    return FileSum(bytes=copied, sha256=digest.hexdigest())


class _Written(NamedTuple):
    path: Path
    key: str
    start: int
    end: int


def read_pieces(paths: Iterable[Path], wanted: Sequence[Piece]) -> None:
    """Fill pieces from the state files of a checkpoint, as `StateFiles.read` does.

    Args:
        paths: All state files of the checkpoint.
        wanted: The pieces; their views are filled in place.

    Raises:
        ResumeError: If no file holds some element of a piece.
    """
    StateFiles(paths).read(wanted)


class StateFiles:
    """The state files of a checkpoint, read a tensor at a time.

    Args:
        paths: All state files of the checkpoint.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._written = _index(paths)

    def read(self, wanted: Sequence[Piece]) -> None:
        """Fill pieces.

        Args:
            wanted: The pieces; their views are filled in place.

        Raises:
            ResumeError: If no file holds some element of a piece.
        """
        for piece in wanted:
            for kind, view in piece.views.items():
                self._fill(piece, kind, view)

    def _fill(self, piece: Piece, kind: str, view: torch.Tensor) -> None:
        first, last, missing = piece.start, piece.start + view.numel(), view.numel()
        for source in self._written[kind, piece.name]:
            begin, end = max(first, source.start), min(last, source.end)
            if begin < end:
                # Opened each time: the pages that an open file has mapped count as memory of the process.
                file: Any
                with safe_open(source.path, "pt") as file:
                    values = file.get_slice(source.key)[begin - source.start : end - source.start]
                    view[begin - first : end - first].copy_(values)
                    del values
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
