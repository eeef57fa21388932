"""SentencePiece models (Kudo & Richardson 2018): unigram and BPE, with byte fallback or without."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sentencepiece import SentencePieceProcessor

from reptrain.errors import TokenizerError
from reptrain.text.ends import NamedEnd
from reptrain.text.tokenizer import EOS_NAMES, Ids, Tokenizer


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model.

    Args:
        model_bytes: The serialized model.
        eos: The control piece that ends a document, or the end that a file names. None takes the model's own,
            or a piece with a usual name.

    Raises:
        TokenizerError: If the bytes are not a SentencePiece model, or ``eos`` is not a control piece of it.
    """

    file_name = "tokenizer.model"

    def __init__(self, model_bytes: bytes, eos: str | NamedEnd | None = None) -> None:
        super().__init__(model_bytes)
        if not model_bytes:
            raise _not_a_model("0 bytes")
        try:
            self._processor = SentencePieceProcessor(model_proto=model_bytes)
        except RuntimeError as error:
            raise _not_a_model(f"{len(model_bytes)} other bytes") from error
        self.pad_id = int(self._processor.pad_id())
        self.unk_id = int(self._processor.unk_id())
        self.eos_id = self._own_eos() if eos is None else self._end(eos)
        if isinstance(eos, str) and self.eos_id < 0:
            raise TokenizerError(
                "tokenizer",
                got=repr(eos),
                rule="must have the --eos piece as a control piece, which no text encodes to",
                remedy="Choose another piece, or leave --eos out to use the model's own.",
            )
        self.sentinel_ids = self._find_sentinels()

    @property
    def vocab_size(self) -> int:
        """The number of pieces, including sentinels."""
        return int(self._processor.get_piece_size())

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of one sequence of ids; control pieces (pad, EOS, sentinels) are skipped."""
        return str(self._processor.decode(np.asarray(ids, dtype=np.int64).tolist()))

    def piece(self, index: int) -> str:
        """The piece as in the vocabulary, with ``▁`` for a space."""
        return str(self._processor.id_to_piece(index))

    def _piece_bytes(self, index: int) -> int:
        if self._processor.is_control(index) or self._processor.is_unused(index):
            return 0
        if self._processor.is_byte(index):
            return 1
        return len(self.piece(index).replace("▁", " ").encode())

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        ids: list[Ids] = self._processor.encode(list(texts), return_type="numpy", num_threads=1)
        return ids

    def _own_eos(self) -> int:
        """The model's EOS. In a model that declares none, such as ALBERT's, a piece with a usual name."""
        if (declared := int(self._processor.eos_id())) >= 0:
            return declared
        return next((index for name in EOS_NAMES if (index := self._control(name)) >= 0), -1)

    def _end(self, end: str | NamedEnd) -> int:
        if isinstance(end, str):
            return self._control(end)
        if end.piece is not None:
            return self._control(end.piece)
        index = -1 if end.id is None else end.id
        if not 0 <= index < self.vocab_size:
            return -1
        is_own = index == int(self._processor.eos_id())
        return index if is_own or self._processor.is_control(index) else -1

    def _control(self, piece: str) -> int:
        """The id of a control piece, or -1. A text can spell any other piece."""
        index = int(self._processor.piece_to_id(piece))
        return index if index != self.unk_id and self._processor.is_control(index) else -1

    def _find_sentinels(self) -> tuple[int, ...]:
        ids: list[int] = []
        while (index := self._control(f"<extra_id_{len(ids)}>")) >= 0:
            ids.append(index)
        return tuple(ids)


def _not_a_model(got: str) -> TokenizerError:
    return TokenizerError(
        "tokenizer",
        got=got,
        rule="must be a SentencePiece model or a tokenizer.json",
        remedy="Pass a file of one of these kinds, or leave it out to train one.",
    )
