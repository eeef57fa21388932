"""SentencePiece models: loading, encoding, decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sentencepiece import SentencePieceProcessor

from reptrain.errors import TokenizerError

TokenDtype = np.dtype[np.unsignedinteger[Any]]
TokenArray = npt.NDArray[np.unsignedinteger[Any]]


def token_dtype(vocab_size: int) -> TokenDtype:
    """The smallest unsigned integer that holds every id: uint16 up to 65,536 pieces, else uint32."""
    if vocab_size <= 1 << 16:
        return np.dtype(np.uint16)
    return np.dtype(np.uint32)


class Tokenizer:
    """A SentencePiece model (Kudo & Richardson 2018).

    Args:
        model_bytes: The serialized model.

    Raises:
        TokenizerError: If the bytes are no SentencePiece model.
    """

    def __init__(self, model_bytes: bytes) -> None:
        self.model_bytes = model_bytes
        self.fingerprint = hashlib.sha256(model_bytes).hexdigest()[:32]
        if not model_bytes:
            raise _not_a_model("tokenizer", "0 bytes")
        try:
            self._processor = SentencePieceProcessor(model_proto=model_bytes)
        except RuntimeError as error:
            raise _not_a_model("tokenizer", f"{len(model_bytes)} other bytes") from error
        self.sentinel_ids = self._find_sentinels()
        self.dtype = token_dtype(self.vocab_size)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a ``.model`` file.

        Raises:
            TokenizerError: If it cannot be read or is no SentencePiece model.
        """
        try:
            model_bytes = path.read_bytes()
        except OSError as error:
            raise TokenizerError(
                f"tokenizer {path}",
                got=error.strerror or error,
                rule="must be a readable file",
                remedy="Check the path.",
            ) from error
        try:
            return cls(model_bytes)
        except TokenizerError as error:
            raise _not_a_model(f"tokenizer {path}", str(error.got)) from error

    @property
    def vocab_size(self) -> int:
        """The number of pieces, sentinels among them."""
        return int(self._processor.get_piece_size())

    @property
    def pad_id(self) -> int:
        """The id of the padding piece; -1 where the model has none."""
        return int(self._processor.pad_id())

    @property
    def eos_id(self) -> int:
        """The id that ends a document; -1 where the model has none."""
        return int(self._processor.eos_id())

    @property
    def unk_id(self) -> int:
        """The id of what the vocabulary does not hold."""
        return int(self._processor.unk_id())

    @property
    def num_sentinels(self) -> int:
        """The number of sentinels, ``<extra_id_0>`` onwards."""
        return len(self.sentinel_ids)

    def encode(self, texts: Sequence[str]) -> list[TokenArray]:
        """Token ids of each text, without EOS, as uint16 or uint32 by the vocabulary's size."""
        # One thread: the callers are processes that share the machine already.
        encoded = self._processor.encode(list(texts), out_type=int, num_threads=1)
        return [np.array(ids, dtype=self.dtype) for ids in encoded]

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of one sequence of ids; control pieces (pad, EOS, sentinels) leave no trace."""
        return str(self._processor.decode(np.asarray(ids, dtype=np.int64).tolist()))

    def piece(self, index: int) -> str:
        """The piece as it stands in the vocabulary, ``▁`` for a space."""
        return str(self._processor.id_to_piece(index))

    def _find_sentinels(self) -> tuple[int, ...]:
        ids: list[int] = []
        while (index := int(self._processor.piece_to_id(f"<extra_id_{len(ids)}>"))) not in (-1, self.unk_id):
            ids.append(index)
        return tuple(ids)


def _not_a_model(what: str, got: str) -> TokenizerError:
    return TokenizerError(
        what, got=got, rule="must be a SentencePiece model", remedy="Pass a .model file or leave it out."
    )
