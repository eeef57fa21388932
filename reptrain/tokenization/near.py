"""Signatures for near-duplicates: hashes of word shingles, then MinHash by rensa.

A word is a run of letters and digits, with ASCII in lower case, or one character of a script without spaces.
A shingle is ``shingle_words`` consecutive words; a shorter text is one shingle.

shingle_words 2: "The cat -- the CAT!"  ->  the cat | cat the | the cat
"""

from __future__ import annotations

import functools
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

# Documents are hashed in pieces of this many characters to bound the memory. Shingles do not cross pieces.
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
    """Settings from ``KEY=VALUE``; the others keep their defaults.

    Raises:
        StoreError: If a key is unknown or a value has another type.
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
    """The same settings, checked.

    Raises:
        StoreError: Naming the setting.
    """
    rules = [
        ("shingle_words", settings.shingle_words >= 1, "must be at least 1", "The default is 5."),
        (
            "permutations",
            1 <= settings.permutations <= 4096,
            "must be between 1 and 4096",
            "The default is 128.",
        ),
        ("bands", settings.bands >= 1, "must be at least 1", "21 bands of 6 rows fit the threshold 0.8."),
        ("rows", settings.rows >= 1, "must be at least 1", "21 bands of 6 rows fit the threshold 0.8."),
        ("threshold", 0 < settings.threshold <= 1, "must be above 0 and at most 1", "The default is 0.8."),
        ("seed", 0 <= settings.seed < 2**64, "must be at least 0 and below 2**64", "The default is 0."),
    ]
    for name, holds, rule, remedy in rules:
        if not holds:
            raise StoreError(f"near-duplicates {name}", got=getattr(settings, name), rule=rule, remedy=remedy)
    if settings.bands * settings.rows > settings.permutations:
        raise StoreError(
            "near-duplicates bands x rows",
            got=f"{settings.bands} x {settings.rows}",
            rule=f"must be at most the {settings.permutations} permutations",
            remedy="Use fewer bands or more permutations.",
        )
    return settings


class DocumentSignatures(NamedTuple):
    """Signatures of documents, uint32 [D, permutations], and which documents have a word, bool [D]."""

    signatures: Signatures
    has_words: npt.NDArray[np.bool_]


def sign(texts: Sequence[str], settings: NearSettings) -> DocumentSignatures:
    """The MinHash signatures of texts. They depend on the text alone, not on its batch or the machine.

    The fraction of equal entries of two signatures estimates the Jaccard similarity of the texts' shingles.

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
    return DocumentSignatures(rows, counts > 0)


class SignatureWriter:
    """Writes the signatures and band hashes of a job, for `find_clusters`. A context manager.

    `signatures` is uint32 [documents, permutations]; `bands` is uint64 [bands, 2, documents with words]: for
    each band the sorted hashes of its rows, and the documents' indices.

    Args:
        signatures: Path of the signatures.
        bands: Path of the band hashes, written by `close`.
        settings: Shingle size, permutations, bands and rows.
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
        """Add the next document."""
        self._texts.append(text)
        self._characters += len(text)
        if self._characters >= _PIECE_CHARACTERS:
            self._flush()

    def close(self) -> None:
        """Finish both files."""
        self._flush()
        self._file.close()
        settings = self._settings
        index = np.flatnonzero(np.concatenate(self._has_words))
        signatures = open_signatures(self._paths[0], settings)
        with self._paths[1].open("wb") as file:
            for band in range(settings.bands):
                rows = np.asarray(signatures[index, band * settings.rows : (band + 1) * settings.rows])
                hashes = fold(rows.T.astype(np.uint64))
                order = np.lexsort((index, hashes))
                file.write(np.stack([hashes[order], index[order].astype(np.uint64)]).tobytes())

    def _flush(self) -> None:
        if self._texts:
            signed = sign(self._texts, self._settings)
            self._file.write(signed.signatures.tobytes())
            self._has_words.append(signed.has_words)
        self._texts, self._characters = [], 0


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
    """Groups of pieces of the texts, and the index of each piece's text."""
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
    # Pieces are separated by a line break, which is part of no word.
    text = "\n".join(pieces)
    is_ascii = text.isascii()
    points = np.frombuffer(text.encode("ascii" if is_ascii else "utf-32-le"), np.uint8 if is_ascii else "<u4")
    letters = letter[points]
    is_word = letters > 0
    begins = is_word.copy()
    if is_ascii:
        begins[1:] &= ~is_word[:-1]
    else:
        alone = stands_alone[points]
        begins[1:] &= ~is_word[:-1] | alone[1:] | alone[:-1]
    first = np.flatnonzero(begins)
    if len(first) == 0:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    power, inverse = powers(1 << (len(points) - 1).bit_length())
    # The polynomial hash of a word at its position, shifted to position 0.
    words = mix(np.add.reduceat(letters * power[: len(letters)], first) * inverse[first])
    ends = np.cumsum([len(piece) + 1 for piece in pieces])
    return words, np.searchsorted(ends, first, side="right")


@functools.cache
def _characters() -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """For every code point: its lower case, or 0 if it is in no word; and whether it is a word by itself.

    Ranges are fixed, as Unicode tables differ between Python versions.
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
