"""Tokenizers: encoding and decoding. One interface for two kinds of files."""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

EOS_NAMES = ("</s>", "<|endoftext|>", "<eos>", "<|end_of_text|>", "[SEP]", "[EOS]")
"""Usual names of the piece that ends a document."""

TokenDtype = np.dtype[np.unsignedinteger[Any]]
TokenArray = npt.NDArray[np.unsignedinteger[Any]]
Ids = npt.NDArray[np.int32]

# The libraries use up to a hundred bytes of memory per character while they encode a text.
_MOST_CHARACTERS = 1 << 20
_SEAM_CHARACTERS = 256
_MOST_SEAMS = 1000


def token_dtype(vocab_size: int) -> TokenDtype:
    """The smallest unsigned integer that holds every id: uint16 up to 65,536 pieces, else uint32."""
    if vocab_size <= 1 << 16:
        return np.dtype(np.uint16)
    return np.dtype(np.uint32)


class Encoding(NamedTuple):
    """Token ids of texts, one after the other, and the number of ids of each text."""

    ids: TokenArray
    lengths: npt.NDArray[np.int64]


class OtherPiece(NamedTuple):
    """The first id whose pieces differ between two tokenizers; a piece that is not there is None."""

    id: int
    one: str | None
    other: str | None


class Seam(NamedTuple):
    """A cut in a long text: the left part ends at ``stop``, the right part starts at ``start``.

    ``start`` is before ``stop`` if the right part needs the character before it to get the ids of the whole
    text; the first ``drop`` ids belong to that character. It is after ``stop`` if the tokenizer itself puts a
    space before every text.
    """

    stop: int
    start: int
    drop: int


class Tokenizer(ABC):
    """A tokenizer whose special pieces (EOS, pad, sentinels, all control pieces) no text encodes to.

    Args:
        model_bytes: The content of its file.

    Attributes:
        fingerprint: Fingerprint of these bytes.
        dtype: Type of the tokens.
        eos_id: The id that ends a document; -1 if there is none, or a file names one that is not a special
            piece.
        pad_id: The id of the padding piece, or -1.
        unk_id: The id of unknown text, or -1 if the vocabulary covers every text.
        sentinel_ids: The ids of ``<extra_id_0>`` onwards.
    """

    file_name: ClassVar[str]
    """Name of its file in a store; each kind has its own."""

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
        """The number of ids, including special pieces."""

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

        Uses one thread, as callers run in several processes. A text of more than 2^20 characters is encoded
        in parts, cut where this does not change the ids.
        """
        together = self.encode_together(texts)
        return np.split(together.ids, np.cumsum(together.lengths)[:-1]) if texts else []

    def encode_together(self, texts: Sequence[str]) -> Encoding:
        """The same as `encode`, in one array: faster if the texts are short."""
        encoded = iter(self._encode([text for text in texts if len(text) <= _MOST_CHARACTERS]))
        parts = [
            next(encoded) if len(text) <= _MOST_CHARACTERS else self._encode_long(text) for text in texts
        ]
        ids = np.concatenate([np.zeros(0, np.int32), *parts])
        return Encoding(ids.astype(self.dtype), np.array([len(part) for part in parts], np.int64))

    @abstractmethod
    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of one sequence of ids; special pieces (pad, EOS, sentinels) are skipped."""

    @abstractmethod
    def piece(self, index: int) -> str:
        """The piece as in the vocabulary."""

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes that each id represents, int64 [vocab_size].

        Special pieces represent none, unknown text 3: it is mostly rare characters of scripts with 3 bytes
        per character.
        """
        lengths = np.array([self._piece_bytes(index) for index in range(self.vocab_size)], np.int64)
        lengths[[index for index in (self.eos_id, self.pad_id, *self.sentinel_ids) if index >= 0]] = 0
        if self.unk_id >= 0:
            lengths[self.unk_id] = 3
        return lengths

    @abstractmethod
    def _piece_bytes(self, index: int) -> int:
        """UTF-8 bytes that a piece represents; 0 if decoding skips it."""

    @abstractmethod
    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, on one thread. The texts have at most 2^20 characters."""

    def _encode_long(self, text: str) -> Ids:
        parts: list[Ids] = []
        seam = Seam(0, 0, 0)
        while seam.start < len(text):
            left, end = seam, seam.start + _MOST_CHARACTERS
            seam = self._find_seam(text, end) if end < len(text) else Seam(len(text), len(text), 0)
            (ids,) = self._encode([text[left.start : seam.stop]])
            parts.append(ids[left.drop :])
        return np.concatenate(parts)

    def _find_seam(self, text: str, end: int) -> Seam:
        """The last cut before ``end`` that does not change the ids around it."""
        for stop in _places(text, end):
            first, last = stop - _SEAM_CHARACTERS, stop + _SEAM_CHARACTERS
            whole, left = self._encode([text[first:last], text[first:stop]])
            starts = (stop, stop + 1, stop - 1) if text[stop] == " " else (stop, stop - 1)
            for start in starts:
                guard, right = self._encode([text[start:stop], text[start:last]])
                if np.array_equal(np.concatenate([left, right[len(guard) :]]), whole):
                    return Seam(stop, start, len(guard))
        # Every cut changes the ids; they still decode to the text.
        return Seam(end, end, 0)


def _places(text: str, end: int) -> Iterator[int]:
    """Cuts to try, backwards from ``end``: first at white space, then anywhere."""
    spaces = (stop for stop in range(end, end - _MOST_CHARACTERS // 2, -1) if text[stop].isspace())
    yield from itertools.islice(spaces, _MOST_SEAMS)
    yield from range(end, end - _MOST_SEAMS, -1)


def first_other_piece(one: Tokenizer, other: Tokenizer) -> OtherPiece | None:
    """The first id whose pieces differ; None if both have the same pieces under the same ids."""
    if one.fingerprint == other.fingerprint:
        return None
    for index in range(max(one.vocab_size, other.vocab_size)):
        pieces = [each.piece(index) if index < each.vocab_size else None for each in (one, other)]
        if pieces[0] != pieces[1]:
            return OtherPiece(index, *pieces)
    return None
