"""A sealed token store, memory-mapped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from reptrain.errors import StoreError, TokenizerError
from reptrain.store.manifest import Shard, SplitInfo, SplitName, StoreManifest, read_manifest
from reptrain.store.mapped_shards import MappedShards
from reptrain.store.remote import RemoteStore, local_folder, open_remote
from reptrain.store.shards import ShardReader
from reptrain.text.load import load_tokenizer
from reptrain.text.tokenizer import TokenArray, Tokenizer


class _Files:
    """The shards of a store: those that were opened, and those of a remote store that are kept in the cache.

    Args:
        folder: The store's folder.
        shards: The shards that are there.
        remote: Fetches more; None for a local store.
    """

    def __init__(self, folder: Path, shards: Iterable[Shard], remote: RemoteStore | None) -> None:
        self._folder, self._remote = folder, remote
        self._held: dict[str, IO[bytes]] = {}
        self._lock = Lock()
        self.states = {shard.file: _file_state(folder / shard.file) for shard in shards}
        """Identity, size and time of change of each file when it was opened; None if it was missing."""

    def fetch(self, shard: Shard) -> None:
        """Fetch a shard of a remote store, and keep it in the cache as long as the store is open."""
        if self._remote is None:
            return
        with self._lock:
            if shard.file not in self._held:
                self._held[shard.file] = self._remote.open(shard)
                self.states = self.states | {shard.file: _file_state(self._folder / shard.file)}


class Split:
    """The documents of one split, by index. Shards are mapped when they are first used.

    Args:
        name: train, select or report.
        folder: The store's folder.
        info: The split's entry in the manifest.
        dtype: Type of the tokens.
        files: Fetches the shards of a remote store.
    """

    def __init__(self, name: SplitName, folder: Path, info: SplitInfo, dtype: str, files: _Files) -> None:
        self.name = name
        self.dtype = np.dtype(dtype)
        self.num_documents = info.documents
        self.num_tokens = info.tokens
        self.text_bytes = info.text_bytes
        self.words = info.words
        """Words, separated by white space; None in a store that was made before they were counted."""
        self._folder = folder
        self._shards, self._files = info.shards, files
        self._first_document = np.cumsum([0, *(shard.documents for shard in info.shards)])
        self._readers: list[ShardReader | None] = [None] * len(info.shards)
        self._mapped = MappedShards(self.dtype)
        self._is_whole = False

    def lengths(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Lengths in tokens of ``count`` documents from index ``first``, including EOS, int64 [count].

        Raises:
            IndexError: If the split has fewer documents.
        """
        if not 0 <= first <= first + count <= self.num_documents:
            raise IndexError(f"documents {first} to {first + count} of {self.num_documents}")
        parts = [np.zeros(0, np.int64)]
        for shard, start in enumerate(self._first_document[:-1]):
            low, high = max(first - start, 0), min(first + count - start, self._shards[shard].documents)
            if low < high:
                parts.append(self._reader(shard).lengths(low, high - low))
        return np.concatenate(parts)

    def leading_shards(self, num_tokens: int) -> tuple[list[TokenArray], int]:
        """The tokens of the first shards that hold ``num_tokens`` together, and the UTF-8 bytes of their
        text.

        Returns:
            Memory-mapped arrays, uint16 or uint32, and the number of bytes before tokenization.
        """
        arrays: list[TokenArray] = []
        text_bytes = 0
        for number, shard in enumerate(self._shards):
            if sum(map(len, arrays)) >= num_tokens:
                break
            arrays += self._reader(number).tokens
            text_bytes += shard.text_bytes
        return arrays, text_bytes

    def read(self, doc_D: npt.ArrayLike, offset_D: npt.ArrayLike, length_D: npt.ArrayLike) -> TokenArray:
        """Read parts of documents, concatenated.

        Args:
            doc_D: Index of each part's document.
            offset_D: First token of the part in its document.
            length_D: Tokens of the part.

        Returns:
            uint16 or uint32 [sum of length_D].

        Raises:
            IndexError: If a part exceeds its document.
        """
        doc, offset, length = (np.asarray(values, np.int64) for values in (doc_D, offset_D, length_D))
        if doc.size == 0:
            return np.empty(0, self.dtype)
        if not 0 <= doc.min() <= doc.max() < self.num_documents:
            raise IndexError(f"documents {doc.min()} to {doc.max()} of {self.num_documents}")
        if length.min() < 0:
            raise IndexError(f"{length.min()} tokens")
        self._map(doc)
        return self._mapped.read(doc, offset, length)

    def document_id(self, index: int) -> str:
        """The id of a document: from the source, or ``file:line``."""
        return str(self._text("id", index))

    def document_metadata(self, index: int) -> dict[str, Any]:
        """The metadata fields and tags of a document; may be empty."""
        metadata: dict[str, Any] = json.loads(self._text("metadata", index) or "{}")
        return metadata

    def _text(self, column: str, index: int) -> str | None:
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        shard = int(np.searchsorted(self._first_document, index, side="right")) - 1
        return self._reader(shard).text(column, index - int(self._first_document[shard]))

    def _map(self, doc_D: npt.NDArray[np.int64]) -> None:
        """Map the shards of these documents if they are not mapped yet."""
        if self._is_whole:
            return
        shards = np.flatnonzero(
            np.bincount(
                np.searchsorted(self._first_document, doc_D, side="right") - 1, minlength=len(self._shards)
            )
        )
        if all(self._mapped.has(number) for number in shards.tolist()):
            return
        for number in shards.tolist():
            self._mapped.add(number, int(self._first_document[number]), self._reader(number))
        self._is_whole = all(self._mapped.has(number) for number in range(len(self._shards)))

    def _reader(self, shard: int) -> ShardReader:
        reader = self._readers[shard]
        if reader is None:
            info = self._shards[shard]
            self._files.fetch(info)
            reader = self._readers[shard] = ShardReader(self._folder / info.file, info)
        return reader


class Store:
    """A sealed token store, opened by `open_store`.

    Args:
        path: Its folder; that of a remote store is in the cache.
        manifest: Its manifest.
        remote: Fetches the shards of a remote store; None for a local folder.
    """

    def __init__(self, path: Path, manifest: StoreManifest, remote: RemoteStore | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self._remote = remote
        shards = [shard for info in manifest.splits.values() for shard in info.shards]
        self._files = _Files(path, () if remote else shards, remote)
        self._splits = {
            name: Split(name, path, info, manifest.dtype, self._files)
            for name, info in manifest.splits.items()
        }

    @property
    def is_remote(self) -> bool:
        """Whether its shards are fetched from object storage."""
        return self._remote is not None

    @property
    def address(self) -> str:
        """The URL of a remote store, or the absolute path of a local one."""
        return str(self.path.resolve()) if self._remote is None else self._remote.url

    def fetch(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Fetch all shards of a remote store; does nothing for a local one.

        Args:
            progress: Called after each shard with the bytes that are there, and all bytes.

        Raises:
            StoreError: If one cannot be fetched, or the cache is too small.
        """
        if self._remote is None:
            return
        shards = [shard for info in self.manifest.splits.values() for shard in info.shards]
        # Processes that start together fetch different shards first.
        first = os.getpid() % max(1, len(shards))
        done, total = 0, sum(shard.bytes for shard in shards)
        for shard in (*shards[first:], *shards[:first]):
            self._files.fetch(shard)
            done += shard.bytes
            if progress is not None:
                progress(done, total)

    def check_unchanged(self) -> None:
        """Check that no shard was replaced or written since the store was opened; reads no data.

        Raises:
            StoreError: Naming the first that was.
        """
        for name, opened in self._files.states.items():
            state = _file_state(self.path / name)
            if state != opened:
                raise StoreError(
                    f"store file {self.path / name}",
                    got="no file" if state is None else "a file that was changed or replaced",
                    rule="must not change while it is in use",
                    remedy="Restore it and run the same command again: a run resumes from its last"
                    " checkpoint. `reptrain store verify` compares the store with its manifest.",
                )

    @property
    def fingerprint(self) -> str:
        """Identifies the content: the same text, tokenizer and options give the same fingerprint."""
        return self.manifest.fingerprint

    @property
    def vocab_size(self) -> int:
        """The vocabulary size; every token id is below it."""
        return self.manifest.vocab_size

    @property
    def eos_id(self) -> int:
        """The token that ends every document."""
        return self.manifest.eos_id

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the store.

        Raises:
            TokenizerError: If the store's tokenizer file has changed.
        """
        tokenizer = load_tokenizer(self.path / self.manifest.tokenizer_file, self.manifest.end)
        if tokenizer.fingerprint != self.manifest.tokenizer:
            raise TokenizerError(
                f"tokenizer {self.path / self.manifest.tokenizer_file}",
                got=f"fingerprint {tokenizer.fingerprint}",
                rule=f"must be the one that made the store, {self.manifest.tokenizer}",
                remedy="Restore it, or rebuild the store.",
            )
        return tokenizer

    def split(self, name: str) -> Split:
        """The documents of `train`, `select` or `report`.

        Raises:
            StoreError: If there is no such split.
        """
        for known, split in self._splits.items():
            if known == name:
                return split
        raise StoreError(
            "split",
            got=repr(name),
            rule=f"must be one of {', '.join(self._splits)}",
            remedy="`train` is for training, `select` for selection, `report` for reported scores.",
        )


def open_store(path: str | Path, *, named_by: str | None = None) -> Store:
    """Open a sealed store. Reads the manifest and the file sizes, not the data.

    Args:
        path: Its folder, or the address of a remote one (s3://, gs://).
        named_by: The setting or option that names the folder, such as ``data.store`` or ``--store``, for the
            error message.

    Raises:
        StoreError: If it is not sealed, or a file is missing or has another size.
    """
    remote, path = open_remote(path), local_folder(path)
    manifest = read_manifest(path, named_by=named_by)
    for info in manifest.splits.values() if remote is None else ():
        for shard in info.shards:
            _check_size(path / shard.file, shard.bytes)
    if not (path / manifest.tokenizer_file).is_file():
        raise _damaged(path / manifest.tokenizer_file, "no file")
    return Store(path, manifest, remote)


def _file_state(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check_size(path: Path, size: int) -> None:
    try:
        actual = path.stat().st_size
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    if actual != size:
        raise _damaged(path, f"{actual} bytes, where the manifest has {size}")


def _damaged(path: Path, got: str) -> StoreError:
    return StoreError(
        f"store file {path}",
        got=got,
        rule="must be unchanged since the store was completed",
        remedy="Copy the store again, or rebuild it with `reptrain tokenize`.",
    )
