"""A token store in memory, with documents of any lengths, for tests of plans."""

from __future__ import annotations

from pathlib import Path

import numpy as np


class MemorySplit:
    """Documents of the given lengths; the tokens of all are 0, 1, 2 ... in the order of the split."""

    def __init__(self, lengths: list[int]) -> None:
        self.name = "train"
        self.ends = np.cumsum([0, *lengths])
        self.num_documents = len(lengths)
        self.num_tokens = int(self.ends[-1])

    def lengths(self, first: int, count: int) -> np.ndarray:
        return np.diff(self.ends)[first : first + count]

    def read(self, doc_D: np.ndarray, offset_D: np.ndarray, length_D: np.ndarray) -> np.ndarray:
        begin, end = self.ends[doc_D] + offset_D, self.ends[doc_D] + offset_D + length_D
        assert (end <= self.ends[np.asarray(doc_D) + 1]).all()
        parts = [np.arange(low, high) for low, high in zip(begin, end, strict=True)]
        return np.concatenate(parts).astype(np.uint32) if parts else np.empty(0, np.uint32)

    def document_id(self, index: int) -> str:
        return f"document {index}"


class MemoryStore:
    """A store with one split, whose fingerprint is the lengths."""

    def __init__(self, path: Path, lengths: list[int]) -> None:
        self.path = path
        self.fingerprint = f"lengths {lengths}"
        self._split = MemorySplit(lengths)

    def split(self, name: str) -> MemorySplit:
        return self._split
