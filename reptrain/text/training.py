"""Training of a SentencePiece unigram model."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from reptrain.errors import TokenizerError
from reptrain.files import write_atomically
from reptrain.text.sentencepiece_model import SentencePieceTokenizer

_SENTENCE_CHARACTERS = 4096
_CONTROL = 3  # SentencePiece.Type.CONTROL in sentencepiece_model.proto
_RESERVED = 4  # pad, eos, unk, newline


def train_tokenizer(
    texts: Iterator[str], out: Path, *, vocab_size: int = 2048, num_sentinels: int = 32, seed: int = 0
) -> SentencePieceTokenizer:
    """Train a unigram model (Kudo 2018) and write it; the same texts give the same bytes.

    The text is taken as it is (no normalization, no prefix space), so that decoding gives back what was
    encoded, but for rare characters, which become unk, and ▁, which becomes a space. A line end is a piece
    of its own.

    Args:
        texts: Documents, read once.
        out: The ``.model`` file to write.
        vocab_size: All pieces: pad 0, eos 1, unk 2, line end 3, learnt ones, sentinels.
        num_sentinels: Reserved ids at the top, as in T5: ``<extra_id_0>`` is vocab_size - 1, counting down.
            No text encodes to them.
        seed: Of SentencePiece's random generator.

    Raises:
        TokenizerError: If the vocabulary does not fit the text.
    """
    num_trained = vocab_size - num_sentinels
    if num_sentinels < 0 or num_trained <= _RESERVED:
        raise TokenizerError(
            "vocab_size",
            got=f"{vocab_size} with {num_sentinels} sentinels",
            rule=f"must leave more than {_RESERVED} pieces beside the sentinels",
            remedy="Raise vocab_size." if num_sentinels >= 0 else "Set num_sentinels to 0 or more.",
        )
    model_bytes = _with_sentinels(
        _train_unigram(texts, num_trained, num_sentinels, seed), num_sentinels, vocab_size
    )
    tokenizer = SentencePieceTokenizer(model_bytes)
    assert tokenizer.vocab_size == vocab_size and tokenizer.num_sentinels == num_sentinels
    write_atomically(out, model_bytes)
    return tokenizer


def _train_unigram(texts: Iterator[str], num_trained: int, num_sentinels: int, seed: int) -> bytes:
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
            # The rule of thumb 0.9995 drops even some capital letters from English text.
            character_coverage=0.99995,
            max_sentence_length=4 * _SENTENCE_CHARACTERS,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explain(error, num_trained, num_sentinels) from error
    return model.getvalue()


def _sentences(texts: Iterator[str]) -> Iterator[str]:
    """Lines, long ones in pieces: what is longer than a limit SentencePiece leaves out silently."""
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _SENTENCE_CHARACTERS):
                yield line[start : start + _SENTENCE_CHARACTERS]


def _explain(error: RuntimeError, num_trained: int, num_sentinels: int) -> TokenizerError:
    reason = str(error)
    remedy = "Raise vocab_size"
    if most := re.search(r"value <= (\d+)", reason):
        remedy = f"Set vocab_size to at most {int(most[1]) + num_sentinels}"
    elif least := re.search(r"\d+ vs (\d+)", reason):
        remedy = f"Set vocab_size to more than {int(least[1]) + num_sentinels}"
    return TokenizerError(
        "vocab_size",
        got=f"{num_trained + num_sentinels} with {num_sentinels} sentinels",
        rule="must fit the text that the tokenizer is trained on",
        remedy=f"{remedy}, or give other text.",
    )


def _with_sentinels(model_bytes: bytes, num_sentinels: int, vocab_size: int) -> bytes:
    """Append control pieces to a serialized model, the last sentinel first, and set its vocab_size.

    Protocol buffers concatenate the repeated fields, and merge the messages, of two encodings that
    follow each other, so that the appended pieces get the next ids. A control piece stands for itself
    alone: text that spells ``<extra_id_0>`` encodes to ordinary pieces.

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
