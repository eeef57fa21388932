"""Reading parts of documents from several mapped shards in one call.

Shapes: D parts of documents, R record batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reptrain.store.shards import ShardReader
from reptrain.text.tokenizer import TokenArray, TokenDtype

Int64s = npt.NDArray[np.int64]


class MappedShards:
    """The mapped shards of a split.

    Two arrays span the memory from the first to the last shard: one of tokens, and one of the Arrow offsets
    of documents. A read therefore needs no loop over shards or record batches. Memory between the shards is
    never read: every position is first checked against its record batch.

    Args:
        dtype: Type of the tokens.
    """

    def __init__(self, dtype: TokenDtype) -> None:
        self._dtype = np.dtype(dtype)
        # Also keeps the mappings alive.
        self._readers: dict[int, tuple[int, ShardReader]] = {}
        self._table = _Table({}, self._dtype)
        self._lock = Lock()

    def has(self, shard: int) -> bool:
        """Whether a shard has been added."""
        return shard in self._table.shards

    def add(self, shard: int, first_document: int, reader: ShardReader) -> None:
        """Add a shard.

        Args:
            shard: Its number in the split.
            first_document: Index in the split of its first document.
            reader: The open shard.
        """
        # Other threads read and add shards at the same time.
        with self._lock:
            if not self.has(shard):
                self._readers[shard] = first_document, reader
                self._table = _Table(self._readers, self._dtype)

    def read(self, doc_D: Int64s, offset_D: Int64s, length_D: Int64s) -> TokenArray:
        """Parts of documents of the added shards, concatenated.

        Args:
            doc_D: int64, index in the split of each part's document.
            offset_D: int64, first token of the part in its document.
            length_D: int64, tokens of the part, at least 0.

        Returns:
            uint16 or uint32 [sum of length_D].

        Raises:
            IndexError: If a part exceeds its document.
        """
        return self._table.read(doc_D, offset_D, length_D)


class _Table:
    """The record batches of shards, in the order of their documents, and the arrays that span them."""

    def __init__(
        self, readers: Mapping[int, tuple[int, ShardReader]], dtype: np.dtype[np.unsignedinteger]
    ) -> None:
        self.shards = frozenset(readers)
        self._dtype = dtype
        firsts, tokens, offsets = [], [], []
        for first_document, reader in (readers[number] for number in sorted(readers)):
            firsts.append(first_document + reader.first_document[:-1])
            tokens += reader.tokens
            offsets += reader.offsets
        self._first_document_R: Int64s = np.concatenate([np.zeros(0, np.int64), *firsts])
        self._num_tokens_R = np.array([array.size for array in tokens], dtype=np.int64)
        self._tokens, self._tokens_R = _spanning(tokens, dtype)
        span, self._offsets_R = _spanning(offsets, np.dtype(np.int32))
        self._offsets = np.frombuffer(span, np.int32)

    def read(self, doc_D: Int64s, offset_D: Int64s, length_D: Int64s) -> TokenArray:
        """See `MappedShards.read`."""
        batch_D = np.searchsorted(self._first_document_R, doc_D, side="right") - 1
        row_D = self._offsets_R[batch_D] + (doc_D - self._first_document_R[batch_D])
        start_D = self._offsets[row_D] + offset_D
        end_D = self._offsets[row_D + 1].astype(np.int64)
        outside = (offset_D < 0) | (start_D + length_D > np.minimum(end_D, self._num_tokens_R[batch_D]))
        if outside.any():
            first = int(np.argmax(outside))
            raise IndexError(f"{length_D[first]} tokens from {offset_D[first]} exceed their document")
        # A negative offset in a damaged file.
        if int(start_D.min(initial=0)) < 0:
            raise IndexError("a document begins before its record batch")
        start_D += self._tokens_R[batch_D]
        return self._copy(start_D, length_D)

    def _copy(self, start_D: Int64s, length_D: Int64s) -> TokenArray:
        """Ranges of the spanning array of tokens, concatenated.

        Arrow's take copies each row of a binary column with one memcpy, six times as fast as flattening a
        list view. Row 2d + 1 of the column is range d; the rows in between have no meaning and are not taken.
        The first and the last offset determine the size that Arrow reserves: the number of taken rows times
        the mean length of a row.
        """
        size, count = self._dtype.itemsize, start_D.size
        total = int(length_D.sum())
        offsets = np.zeros(2 * count + 2, dtype=np.int64)
        np.multiply(start_D, size, out=offsets[1:-1:2])
        np.multiply(start_D + length_D, size, out=offsets[2:-1:2])
        offsets[-1] = min(self._tokens.size, 3 * total * size)
        column = pa.Array.from_buffers(
            pa.large_binary(), 2 * count + 1, [None, pa.py_buffer(offsets), self._tokens]
        )
        # `pa.array` would import pandas, if installed.
        odd = pa.py_buffer(np.arange(1, 2 * count + 1, 2, dtype=np.int64))
        taken = column.take(pa.Array.from_buffers(pa.int64(), count, [None, odd]))
        return np.frombuffer(taken.buffers()[2], self._dtype, total)


def _spanning(
    arrays: Sequence[npt.NDArray[np.generic]], dtype: np.dtype[np.generic]
) -> tuple[pa.Buffer, Int64s]:
    """The memory from the first of the arrays to the last, and their positions in it in elements.

    Args:
        arrays: Contiguous arrays of ``dtype``, aligned to it.
        dtype: Their type.
    """
    filled = [array for array in arrays if array.size]
    if not filled:
        return pa.py_buffer(b""), np.zeros(len(arrays), np.int64)
    low = min(array.ctypes.data for array in filled)
    high = max(array.ctypes.data + array.nbytes for array in filled)
    address = [array.ctypes.data if array.size else low for array in arrays]
    return pa.foreign_buffer(low, high - low), (np.array(address, dtype=np.int64) - low) // dtype.itemsize
