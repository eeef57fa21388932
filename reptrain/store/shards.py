"""Arrow IPC files of tokenized documents: the writer and the memory-mapped reader."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reptrain.errors import StoreError
from reptrain.store.hashing import file_sha256
from reptrain.store.manifest import Shard
from reptrain.text.base import Document
from reptrain.text.tokenizer import TokenArray, TokenDtype

BATCH_TOKENS = 1 << 22
# For short documents, Python's overhead per document exceeds its tokens.
BATCH_DOCUMENTS = 1 << 15


def shard_schema(dtype: TokenDtype) -> pa.Schema:
    """Columns: ``tokens`` list<uint16 | uint32>; strings ``id``, ``source``, ``metadata`` (JSON or null)."""
    texts = [(name, pa.string()) for name in ("id", "source", "metadata")]
    return pa.schema([("tokens", pa.list_(pa.from_numpy_dtype(dtype))), *texts])


class ShardWriter:
    """Writes one shard under a temporary name; `close` renames it. The caller flushes it to the disk.

    A context manager. Without `close`, or without documents, it leaves no file.

    Args:
        path: The shard's final path.
        dtype: Type of the tokens.
    """

    def __init__(self, path: Path, dtype: TokenDtype) -> None:
        self._path = path
        # Named by process, so that a worker of a killed call cannot disturb this one.
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._schema = shard_schema(dtype)
        self._file: IO[bytes] | None = None
        self._writer: pa.RecordBatchFileWriter | None = None
        self._pending: list[tuple[Document, TokenArray]] = []
        self._pending_tokens = 0
        self._documents = self._tokens = self._text_bytes = self._words = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Unlink first: on a full disk, closing fails again.
        self._temporary.unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()

    def add(self, document: Document, tokens: TokenArray, *, text_bytes: int, words: int) -> None:
        """Append a document.

        Args:
            document: Its id, source and metadata are written, its text is not.
            tokens: Its tokens, including EOS.
            text_bytes: UTF-8 bytes of its text.
            words: Words of its text, separated by white space.
        """
        self._pending.append((document, tokens))
        self._pending_tokens += len(tokens)
        self._documents += 1
        self._tokens += len(tokens)
        self._text_bytes += text_bytes
        self._words += words
        if self._pending_tokens >= BATCH_TOKENS or len(self._pending) >= BATCH_DOCUMENTS:
            self._flush()

    def close(self) -> Shard | None:
        """Finish the file and rename it. Returns None if there was no document."""
        if self._documents == 0:
            return None
        self._flush()
        assert self._file is not None and self._writer is not None
        self._writer.close()
        self._file.close()
        digest, size = file_sha256(self._temporary), self._temporary.stat().st_size
        self._temporary.replace(self._path)
        return Shard(
            file=self._path.name,
            sha256=digest,
            bytes=size,
            documents=self._documents,
            tokens=self._tokens,
            text_bytes=self._text_bytes,
            words=self._words,
        )

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._writer is None:
            self._file = self._temporary.open("wb")
            self._writer = pa.ipc.new_file(self._file, self._schema)
        documents = [document for document, _ in self._pending]
        columns = [
            _lists([tokens for _, tokens in self._pending]),
            _strings([document.id for document in documents]),
            _strings([document.source for document in documents]),
            _strings([document.metadata for document in documents]),
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._pending.clear()
        self._pending_tokens = 0


def _offsets(lengths: Sequence[int]) -> pa.Buffer:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise StoreError(
            "metadata",
            got=f"{offsets[-1]:,} bytes in {len(lengths):,} consecutive documents",
            rule="must be less than 2 GiB",
            remedy="Leave a metadata field out.",
        )
    return pa.py_buffer(offsets.astype(np.int32))


# `pyarrow.array` would import pandas, if installed, which takes a third of a second in each process.
def _lists(arrays: Sequence[TokenArray]) -> pa.Array:
    tokens = np.concatenate(arrays)
    dtype = pa.from_numpy_dtype(tokens.dtype)
    values = pa.Array.from_buffers(dtype, len(tokens), [None, pa.py_buffer(tokens)])
    offsets = _offsets([len(array) for array in arrays])
    return pa.Array.from_buffers(pa.list_(dtype), len(arrays), [None, offsets], children=[values])


def _strings(values: Sequence[str | None]) -> pa.Array:
    encoded = [(value or "").encode() for value in values]
    missing = [value is None for value in values]
    valid = pa.py_buffer(np.packbits(~np.array(missing), bitorder="little")) if any(missing) else None
    buffers = [valid, _offsets([len(value) for value in encoded]), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers, null_count=sum(missing))


def _numbers(array: pa.Array) -> npt.NDArray[Any]:
    """An array of numbers without nulls, without a copy.

    `pyarrow.Array.to_numpy` would import pandas, if installed, which takes a quarter of a second.
    """
    return np.from_dlpack(array)


class ShardReader:
    """One shard, memory-mapped.

    Args:
        path: The Arrow file.
        shard: Its entry in the manifest.

    Raises:
        StoreError: If it cannot be read, or has another number of documents or tokens.
    """

    def __init__(self, path: Path, shard: Shard) -> None:
        try:
            file = pa.ipc.open_file(pa.memory_map(str(path)))
            self.batches = [file.get_batch(index) for index in range(file.num_record_batches)]
            columns = [batch.column("tokens") for batch in self.batches]
            self.tokens: list[TokenArray] = [_numbers(column.values) for column in columns]
            self.offsets: list[npt.NDArray[np.int32]] = [_numbers(column.offsets) for column in columns]
        except (OSError, pa.ArrowInvalid, pa.ArrowTypeError, KeyError) as error:
            raise _changed(path, str(error).splitlines()[0]) from error
        self.first_document = np.cumsum([0, *(batch.num_rows for batch in self.batches)])
        documents, tokens = int(self.first_document[-1]), sum(map(len, self.tokens))
        if (documents, tokens) != (shard.documents, shard.tokens):
            raise _changed(path, f"{documents} documents of {tokens} tokens")

    def lengths(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Lengths in tokens of ``count`` documents from ``first``, int64 [count]."""
        parts = [np.zeros(0, np.int64)]
        for start, offsets in zip(self.first_document, self.offsets, strict=False):
            low, high = max(first - start, 0), min(first + count - start, len(offsets) - 1)
            if low < high:
                parts.append(np.diff(offsets[low : high + 1]).astype(np.int64))
        return np.concatenate(parts)

    def text(self, column: str, index: int) -> str | None:
        """The value of a string column for one document."""
        batch = int(np.searchsorted(self.first_document, index, side="right")) - 1
        value = self.batches[batch].column(column)[index - int(self.first_document[batch])].as_py()
        return None if value is None else str(value)


def _changed(path: Path, got: str) -> StoreError:
    return StoreError(
        f"shard {path}",
        got=got,
        rule="must match the manifest",
        remedy="Run `reptrain store verify`, and rebuild the store.",
    )
