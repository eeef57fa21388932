"""Training of a SentencePiece unigram model."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from reptrain.errors import TokenizerError
from reptrain.files import write_atomically
from reptrain.text.sentencepiece_model import SentencePieceTokenizer

DEFAULT_VOCAB_SIZE = 2048
_SENTENCE_CHARACTERS = 4096
_CONTROL = 3  # SentencePiece.Type.CONTROL in sentencepiece_model.proto
_ATTEMPTS = 2
_RESERVED = 4  # pad, eos, unk, newline


def train_tokenizer(
    texts: Iterable[str],
    out: Path,
    *,
    vocab_size: int = DEFAULT_VOCAB_SIZE,
    num_sentinels: int = 32,
    fit: bool = False,
    seed: int = 0,
) -> SentencePieceTokenizer:
    """Train a unigram model (Kudo 2018) and write it. The same texts give the same bytes.

    The text is not changed (no normalization, no prefix space), so decoding restores the encoded text, except
    for rare characters, which become unk, and ▁, which becomes a space. A line end is a separate piece.

    Args:
        texts: Documents; with ``fit`` they may be iterated several times.
        out: The ``.model`` file to write.
        vocab_size: Number of pieces: pad 0, eos 1, unk 2, line end 3, trained pieces, sentinels.
        num_sentinels: Reserved ids at the top, as in T5: ``<extra_id_0>`` is vocab_size - 1, counting down.
            No text encodes to them.
        fit: If the text has too few pieces or too many characters, train the nearest size that fits instead
            of raising.
        seed: Seed of SentencePiece's random generator.

    Raises:
        TokenizerError: If the vocabulary does not fit the text.
    """
    num_trained = vocab_size - num_sentinels
    if num_sentinels < 0 or num_trained <= _RESERVED:
        raise TokenizerError(
            "vocab_size",
            got=f"{vocab_size} with {num_sentinels} sentinels",
            rule=f"must leave more than {_RESERVED} pieces in addition to the sentinels",
            remedy="Raise vocab_size." if num_sentinels >= 0 else "Set num_sentinels to 0 or more.",
        )
    try:
        trained = _train_unigram(texts, num_trained, seed)
    except _DoesNotFitError as error:
        if not fit:
            raise error.user_error(num_trained, num_sentinels) from error
        fitted = _train_to_fit(texts, error, seed)
        if fitted is None:
            raise error.user_error(num_trained, num_sentinels) from error
        trained, num_trained = fitted
    vocab_size = num_trained + num_sentinels
    model_bytes = _with_sentinels(trained, num_sentinels, vocab_size)
    tokenizer = SentencePieceTokenizer(model_bytes)
    assert tokenizer.vocab_size == vocab_size and tokenizer.num_sentinels == num_sentinels
    write_atomically(out, model_bytes)
    return tokenizer


class _DoesNotFitError(Exception):
    """SentencePiece refused a size; holds the bound that it names."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        most, least = re.search(r"value <= (\d+)", reason), re.search(r"\d+ vs (\d+)", reason)
        self.most = int(most[1]) if most else None
        """Largest number of pieces for this text."""
        self.least = int(least[1]) if least and not most else None
        """Pieces that its characters need; the size must be larger."""

    def user_error(self, num_trained: int, num_sentinels: int) -> TokenizerError:
        """The error for the user."""
        remedy = "Raise vocab_size"
        if self.most is not None:
            remedy = f"Set vocab_size to at most {self.most + num_sentinels}"
        elif self.least is not None:
            remedy = f"Set vocab_size to more than {self.least + num_sentinels}"
        return TokenizerError(
            "vocab_size",
            got=f"{num_trained + num_sentinels} with {num_sentinels} sentinels",
            rule="must fit the text that the tokenizer is trained on",
            remedy=f"{remedy}, or give other text.",
        )


def _train_to_fit(texts: Iterable[str], refusal: _DoesNotFitError, seed: int) -> tuple[bytes, int] | None:
    """A model of the nearest size that fits the text, and its number of pieces; None if none fits."""
    # Twice the characters leaves room for longer pieces.
    size = refusal.most if refusal.least is None else 2 * refusal.least
    for _ in range(_ATTEMPTS):
        if size is None or size <= _RESERVED:
            return None
        try:
            return _train_unigram(texts, size, seed), size
        except _DoesNotFitError as error:
            size = error.most
    return None


def _train_unigram(texts: Iterable[str], num_trained: int, seed: int) -> bytes:
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=num_trained,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            user_defined_symbols=["\n"],
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            # The usual 0.9995 drops even some capital letters from English text.
            character_coverage=0.99995,
            max_sentence_length=4 * _SENTENCE_CHARACTERS,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _DoesNotFitError(str(error)) from error
    return model.getvalue()


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines, with long ones split: SentencePiece silently skips lines above a limit."""
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _SENTENCE_CHARACTERS):
                yield line[start : start + _SENTENCE_CHARACTERS]


def _with_sentinels(model_bytes: bytes, num_sentinels: int, vocab_size: int) -> bytes:
    """Append control pieces to a serialized model, the last sentinel first, and set its vocab_size.

    In concatenated protocol buffers, repeated fields are concatenated and messages merged, so the appended
    pieces get the next ids. No text encodes to a control piece: text that spells ``<extra_id_0>`` encodes to
    ordinary pieces.

    Source: protobuf.dev/programming-guides/encoding, "Last One Wins"; sentencepiece_model.proto:
        ModelProto {pieces = 1, trainer_spec = 2}, SentencePiece {piece = 1, score = 2, type = 3},
        TrainerSpec {vocab_size = 4}.
    """
    pieces = [
        _field(1, f"<extra_id_{index}>".encode())
        + b"\x15"
        + struct.pack("<f", 0.0)
        + b"\x18"
        + bytes([_CONTROL])
        for index in reversed(range(num_sentinels))
    ]
    size = _field(2, b"\x20" + _varint(vocab_size))
    return model_bytes + b"".join(_field(1, piece) for piece in pieces) + size


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
