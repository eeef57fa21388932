"""Tokenizers: loading by content, encoding, decoding. One interface, two kinds of files."""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

EOS_NAMES = ("</s>", "<|endoftext|>", "<eos>", "<|end_of_text|>", "[SEP]", "[EOS]")
"""What the piece that ends a document is usually called."""

TokenDtype = np.dtype[np.unsignedinteger[Any]]
TokenArray = npt.NDArray[np.unsignedinteger[Any]]

# The libraries need up to a hundred bytes of memory a character while they encode one text.
_MOST_CHARACTERS = 1 << 20
_SEAM_CHARACTERS = 256
_MOST_SEAMS = 1000


def token_dtype(vocab_size: int) -> TokenDtype:
    """The smallest unsigned integer that holds every id: uint16 up to 65,536 pieces, else uint32."""
    if vocab_size <= 1 << 16:
        return np.dtype(np.uint16)
    return np.dtype(np.uint32)


class Seam(NamedTuple):
    """A cut through a long text: the left part ends at ``stop``, the right one starts at ``start``.

    ``start`` is before ``stop`` where a character has to stand before the right part for its ids to come out
    as in the whole text, and ``drop`` ids are its; it is after ``stop`` where the tokenizer puts a space
    before every text by itself.
    """

    stop: int
    start: int
    drop: int


class Tokenizer(ABC):
    """A tokenizer whose special pieces (EOS, pad, sentinels, all control pieces) no text encodes to.

    Args:
        model_bytes: The content of its file.

    Attributes:
        fingerprint: Of those bytes.
        dtype: Of the tokens.
        eos_id: The id that ends a document; -1 where there is none, or a file names one that is not a
            special piece.
        pad_id: The id of the padding piece; -1 where there is none.
        unk_id: The id of what the vocabulary does not hold; -1 where it holds everything.
        sentinel_ids: Those of ``<extra_id_0>`` onwards.
    """

    file_name: ClassVar[str]
    """Its file's name in a store, which tells the kind."""

    eos_id: int
    pad_id: int
    unk_id: int
    sentinel_ids: tuple[int, ...]

    def __init__(self, model_bytes: bytes) -> None:
        self.model_bytes = model_bytes
        self.fingerprint = hashlib.sha256(model_bytes).hexdigest()[:32]

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of ids, special pieces among them."""

    @property
    def dtype(self) -> TokenDtype:
        """The type of its tokens."""
        return token_dtype(self.vocab_size)

    @property
    def num_sentinels(self) -> int:
        """The number of sentinels, ``<extra_id_0>`` onwards."""
        return len(self.sentinel_ids)

    def encode(self, texts: Sequence[str]) -> list[TokenArray]:
        """Token ids of each text, without EOS, as uint16 or uint32 by the vocabulary's size.

        One thread, since the callers are processes that share the machine already. A text of more than
        2^20 characters is encoded in parts, cut where the ids on both sides are those of the uncut text.
        """
        encoded = iter(self._encode([text for text in texts if len(text) <= _MOST_CHARACTERS]))
        return [
            np.array(next(encoded), self.dtype) if len(text) <= _MOST_CHARACTERS else self._encode_long(text)
            for text in texts
        ]

    @abstractmethod
    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of one sequence of ids; special pieces (pad, EOS, sentinels) leave no trace."""

    @abstractmethod
    def piece(self, index: int) -> str:
        """The piece as it stands in the vocabulary."""

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes that each id stands for, int64 [vocab_size].

        Special pieces stand for none, unknown text for 3: what a vocabulary lacks is mostly rare characters
        of scripts that take 3 bytes each.
        """
        lengths = np.array([self._piece_bytes(index) for index in range(self.vocab_size)], np.int64)
        lengths[[index for index in (self.eos_id, self.pad_id, *self.sentinel_ids) if index >= 0]] = 0
        if self.unk_id >= 0:
            lengths[self.unk_id] = 3
        return lengths

    @abstractmethod
    def _piece_bytes(self, index: int) -> int:
        """UTF-8 bytes that a piece stands for; 0 for one that leaves no trace in a text."""

    @abstractmethod
    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, which is not too long, on one thread."""

    def _encode_long(self, text: str) -> TokenArray:
        parts: list[TokenArray] = []
        seam = Seam(0, 0, 0)
        while seam.start < len(text):
            left, end = seam, seam.start + _MOST_CHARACTERS
            seam = self._find_seam(text, end) if end < len(text) else Seam(len(text), len(text), 0)
            (ids,) = self._encode([text[left.start : seam.stop]])
            parts.append(np.array(ids[left.drop :], self.dtype))
        return np.concatenate(parts)

    def _find_seam(self, text: str, end: int) -> Seam:
        """The last place before ``end`` where a cut leaves the ids around it as they are."""
        for stop in _places(text, end):
            first, last = stop - _SEAM_CHARACTERS, stop + _SEAM_CHARACTERS
            whole, left = self._encode([text[first:last], text[first:stop]])
            starts = (stop, stop + 1, stop - 1) if text[stop] == " " else (stop, stop - 1)
            for start in starts:
                guard, right = self._encode([text[start:stop], text[start:last]])
                if left + right[len(guard) :] == whole:
                    return Seam(stop, start, len(guard))
        # A text where no cut is without effect; its ids decode to it all the same.
        return Seam(end, end, 0)


def _places(text: str, end: int) -> Iterator[int]:
    """Where to try to cut: at white space first, then anywhere, backwards from ``end``."""
    spaces = (stop for stop in range(end, end - _MOST_CHARACTERS // 2, -1) if text[stop].isspace())
    yield from itertools.islice(spaces, _MOST_SEAMS)
    yield from range(end, end - _MOST_SEAMS, -1)
