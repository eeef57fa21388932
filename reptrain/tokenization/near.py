"""Signatures for near-duplicates: shingles of words, hashed, then MinHash by rensa.

A word is a run of letters and digits, ASCII in lower case, or one character of a script that writes no
spaces. A shingle is ``shingle_words`` words in a row; a shorter text is one shingle.

shingle_words 2: "The cat -- the CAT!"  ->  the cat | cat the | the cat
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError
from rensa import RMinHash

from reptrain.errors import StoreError
from reptrain.store.hashing import Uint64s, fold, mix, powers
from reptrain.tokenize_options import NearSettings

# A document is hashed in pieces of so many characters: bounds the memory. No shingle crosses a piece's end.
_PIECE_CHARACTERS = 1 << 18
_NO_WORD = ((0x80, 0xC0), (0x2000, 0x2070), (0x3000, 0x3040), (0xFF00, 0xFF10))
# Thai to Burmese, Khmer, kana, Chinese characters: written without spaces.
_UNSPACED = (
    (0xE00, 0x10A0),
    (0x1780, 0x1800),
    (0x3040, 0x3100),
    (0x3400, 0xA000),
    (0xF900, 0xFB00),
    (0x20000, 0x40000),
)

Signatures = npt.NDArray[np.uint32]


def near_settings(pairs: Sequence[str]) -> NearSettings:
    """Settings from ``KEY=VALUE``, the others at their defaults.

    Raises:
        StoreError: If a key is not known or a value is of another kind.
    """
    values = dict(pair.partition("=")[::2] for pair in pairs)
    try:
        return TypeAdapter(NearSettings).validate_strings(values)
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(map(str, detail["loc"]))
        raise StoreError(
            f"near-duplicates {key}",
            got=repr(values.get(key)),
            rule="must be a setting and its value",
            remedy=f"Use {', '.join(field.name for field in fields(NearSettings))}, as in threshold=0.8.",
        ) from error


def check_near(settings: NearSettings) -> NearSettings:
    """The settings, refused where they cannot work.

    Raises:
        StoreError: Naming the setting.
    """
    rules = [
        ("shingle_words", settings.shingle_words >= 1, "must be at least 1", "5 is usual."),
        ("permutations", 1 <= settings.permutations <= 4096, "must be between 1 and 4096", "128 is usual."),
        ("bands", settings.bands >= 1, "must be at least 1", "21 bands of 6 rows fit the threshold 0.8."),
        ("rows", settings.rows >= 1, "must be at least 1", "21 bands of 6 rows fit the threshold 0.8."),
        ("threshold", 0 < settings.threshold <= 1, "must be above 0 and at most 1", "0.8 is usual."),
        ("seed", 0 <= settings.seed < 2**64, "must be at least 0 and below 2**64", "0 is usual."),
    ]
    for name, holds, rule, remedy in rules:
        if not holds:
            raise StoreError(f"near-duplicates {name}", got=getattr(settings, name), rule=rule, remedy=remedy)
    if settings.bands * settings.rows > settings.permutations:
        raise StoreError(
            "near-duplicates bands x rows",
            got=f"{settings.bands} x {settings.rows}",
            rule=f"must be at most the {settings.permutations} permutations",
            remedy="Take fewer bands or more permutations.",
        )
    return settings


class Signed(NamedTuple):
    """Signatures of documents, uint32 [D, permutations], and which of the documents have any word."""

    signatures: Signatures
    has_words: npt.NDArray[np.bool_]


def sign(texts: Sequence[str], settings: NearSettings) -> Signed:
    """The MinHash signatures of texts: the same for the same text, alone or among others, on any machine.

    The share of equal places of two signatures estimates the Jaccard similarity of the texts' shingles.

    Args:
        texts: The documents.
        settings: Shingle size, permutations and seed.

    Source: Dahlgaard et al. (2017), "Fast Similarity Sketching", as rensa's R-MinHash implements it.
    """
    hashes, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for pieces, owner in _pieces(texts):
        shingle, piece = _shingles(pieces, settings.shingle_words)
        hashes.append(shingle)
        owners.append(owner[piece])
    counts = np.bincount(np.concatenate(owners), minlength=len(texts))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(hashes), offsets, settings.permutations, settings.seed
    )
    rows = np.array(matrix.to_rows(), np.uint32).reshape(len(texts), settings.permutations)
    return Signed(rows, counts > 0)


class SignatureWriter:
    """Signs a job's documents and writes what `find_clusters` reads. A context manager.

    `signatures` is uint32 [documents, permutations]; `bands` is uint64 [bands, 2, documents with words], for
    each band the hashes of its rows, sorted, with the index of the document.

    Args:
        signatures: The one file.
        bands: The other, written by `close`.
        settings: How to sign.
    """

    def __init__(self, signatures: Path, bands: Path, settings: NearSettings) -> None:
        self._settings = settings
        self._paths = signatures, bands
        self._file: IO[bytes] = signatures.open("wb")
        self._texts: list[str] = []
        self._characters = 0
        self._has_words = [np.zeros(0, np.bool_)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, text: str) -> None:
        """Sign the next document."""
        self._texts.append(text)
        self._characters += len(text)
        if self._characters >= _PIECE_CHARACTERS:
            self._flush()

    def close(self) -> None:
        """Finish both files."""
        self._flush()
        _close(self._file)
        settings = self._settings
        index = np.flatnonzero(np.concatenate(self._has_words))
        signatures = open_signatures(self._paths[0], settings)
        with self._paths[1].open("wb") as file:
            for band in range(settings.bands):
                rows = np.asarray(signatures[index, band * settings.rows : (band + 1) * settings.rows])
                hashes = fold(rows.T.astype(np.uint64))
                order = np.lexsort((index, hashes))
                file.write(np.stack([hashes[order], index[order].astype(np.uint64)]).tobytes())
            _close(file)

    def _flush(self) -> None:
        if self._texts:
            signed = sign(self._texts, self._settings)
            self._file.write(signed.signatures.tobytes())
            self._has_words.append(signed.has_words)
        self._texts, self._characters = [], 0


def _close(file: IO[bytes]) -> None:
    """Close a file whose job will be called done: it must survive a power cut."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def open_signatures(path: Path, settings: NearSettings) -> Signatures:
    """A job's signatures, memory-mapped, uint32 [documents, permutations]."""
    if path.stat().st_size == 0:
        return np.zeros((0, settings.permutations), np.uint32)
    return np.memmap(path, np.uint32, "r").reshape(-1, settings.permutations)


def open_bands(path: Path, settings: NearSettings) -> Uint64s:
    """A job's band hashes, memory-mapped, uint64 [bands, 2, documents with words]."""
    if path.stat().st_size == 0:
        return np.zeros((settings.bands, 2, 0), np.uint64)
    return np.memmap(path, np.uint64, "r").reshape(settings.bands, 2, -1)


def _pieces(texts: Sequence[str]) -> Iterator[tuple[list[str], npt.NDArray[np.int64]]]:
    """The texts in pieces, some at once, and the index of each piece's text."""
    every = (
        (text[start : start + _PIECE_CHARACTERS], index)
        for index, text in enumerate(texts)
        for start in range(0, len(text), _PIECE_CHARACTERS)
    )
    pieces: list[str] = []
    owner: list[int] = []
    characters = 0
    for piece, index in every:
        if pieces and characters + len(piece) > _PIECE_CHARACTERS:
            yield pieces, np.array(owner)
            pieces, owner, characters = [], [], 0
        pieces.append(piece)
        owner.append(index)
        characters += len(piece)
    if pieces:
        yield pieces, np.array(owner)


def _shingles(pieces: Sequence[str], num_words: int) -> tuple[Uint64s, npt.NDArray[np.int64]]:
    """Hashes of all shingles of the pieces, and the piece of each."""
    words, owner = _words(pieces)
    words = np.concatenate([words, np.zeros(num_words, np.uint64)])
    padded = np.concatenate([owner, np.full(num_words, -1)])
    is_whole = padded[num_words - 1 : num_words - 1 + len(owner)] == owner
    is_first = np.diff(owner, prepend=-1) > 0
    at = np.flatnonzero(is_whole | is_first)
    own = padded[at]
    parts = (np.where(padded[at + place] == own, words[at + place], 0) for place in range(num_words))
    return fold(parts), own


def _words(pieces: Sequence[str]) -> tuple[Uint64s, npt.NDArray[np.int64]]:
    """Hashes of the words of the pieces, and the piece of each."""
    letter, stands_alone = _characters()
    # A line break, which is in no word, keeps the pieces apart.
    points = np.frombuffer("\n".join(pieces).encode("utf-32-le"), np.uint32)
    letters, alone = letter[points], stands_alone[points]
    is_word = letters > 0
    begins = is_word.copy()
    begins[1:] &= ~is_word[:-1] | alone[1:] | alone[:-1]
    first = np.flatnonzero(begins)
    if len(first) == 0:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    power, inverse = powers(1 << (len(points) - 1).bit_length())
    # The polynomial of a word at its place, moved to place 0.
    words = mix(np.add.reduceat(letters * power[: len(letters)], first) * inverse[first])
    ends = np.cumsum([len(piece) + 1 for piece in pieces])
    return words, np.searchsorted(ends, first, side="right")


@functools.cache
def _characters() -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """For every code point: itself in lower case, 0 where it is in no word; and whether it is a word alone.

    Fixed ranges, as the tables of Unicode change from one Python to the next.
    """
    letter = np.arange(0x110000, dtype=np.uint64)
    letter[:0x80] = [ord(chr(point).lower()) if chr(point).isalnum() else 0 for point in range(0x80)]
    # Latin-1, Greek and Cyrillic capitals.
    for low, high, step in ((0xC0, 0xDF, 32), (0x391, 0x3AA, 32), (0x410, 0x430, 32), (0x400, 0x410, 80)):
        letter[low:high] += np.uint64(step)
    stands_alone = np.zeros(0x110000, np.bool_)
    for low, high in _NO_WORD:
        letter[low:high] = 0
    for low, high in _UNSPACED:
        stands_alone[low:high] = True
    return letter, stands_alone
