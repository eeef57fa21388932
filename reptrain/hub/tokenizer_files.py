"""A tokenizer's files in a Hugging Face folder.

What we write gives in transformers the ids that it gives here: tokenizer.json, for a SentencePiece model too,
which lies beside it unchanged. Of two ways to cut a text that score the same in a unigram model, the two
libraries may take different ones; both decode to the text.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from reptrain.errors import TokenizerError
from reptrain.reading import decode
from reptrain.text import Tokenizer, load_tokenizer
from reptrain.text.ends import find_end

_SPACE = "\u2581"
_NAMES = ("tokenizer.model", "spiece.model", "tokenizer.json")
_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4


class SpecialIds(NamedTuple):
    """What begins and ends a text."""

    start: int | None
    """Before the first token that a decoder reads; None: nothing."""
    ends: tuple[int, ...]
    """After any of these, a text is over."""


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Those with which our runs train: as in T5 a decoder starts from pad, or EOS where there is none."""
    start = tokenizer.pad_id if tokenizer.pad_id >= 0 else tokenizer.eos_id
    return SpecialIds(start, (tokenizer.eos_id,))


def read_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer in a folder; None where there is none.

    Of several files the one with the most ids: T5's spiece.model lacks the sentinels that its tokenizer.json
    has. A model file that is no SentencePiece model, such as one of tiktoken, is passed over with a note
    where there is a tokenizer.json.

    Raises:
        TokenizerError: If a file is none.
    """
    end = find_end(path)
    found: list[Tokenizer] = []
    for name in _NAMES:
        if not (path / name).exists():
            continue
        try:
            found.append(load_tokenizer(path / name, end))
        except TokenizerError as error:
            if name == "tokenizer.json" or not (path / "tokenizer.json").exists():
                raise
            sys.stderr.write(f"note: {path / name} is passed over for tokenizer.json: got {error.got}\n")
    return max(found, key=lambda tokenizer: tokenizer.vocab_size, default=None)


def write_tokenizer(
    tokenizer: Tokenizer, path: Path, *, special: SpecialIds, is_encoder_decoder: bool
) -> None:
    """Write tokenizer.json, its config, and the SentencePiece model where it is one.

    Args:
        tokenizer: Ours.
        path: The folder.
        special: A decoder's text begins with `start`, an encoder's ends with the first of `ends`.
        is_encoder_decoder: Which of the two the model reads.

    Raises:
        TokenizerError: If it is a SentencePiece model of a kind that tokenizer.json cannot hold.
    """
    library = _library(tokenizer)
    added = special.start
    if is_encoder_decoder:
        added = special.ends[0] if special.ends else None
    if added is not None:
        piece = tokenizer.piece(added)
        template = [f"$A {piece}", piece] if is_encoder_decoder else [f"{piece} $A", piece]
        library.post_processor = TemplateProcessing(single=template[0], special_tokens=[(piece, added)])
    library.save(str(path / "tokenizer.json"))
    if tokenizer.file_name != "tokenizer.json":
        (path / tokenizer.file_name).write_bytes(tokenizer.model_bytes)
    end = special.ends[0] if special.ends else -1
    # A decoder starts from our padding, which must not be masked.
    pad = tokenizer.pad_id if is_encoder_decoder else end
    named = {"eos_token": end, "pad_token": pad, "unk_token": tokenizer.unk_id}
    if not is_encoder_decoder and special.start is not None:
        named["bos_token"] = special.start
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {key: tokenizer.piece(index) for key, index in named.items() if index >= 0}
    settings["clean_up_tokenization_spaces"] = False
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _library(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    if tokenizer.file_name == "tokenizer.json":
        return tokenizers.Tokenizer.from_str(decode(tokenizer.model_bytes))
    return _from_sentencepiece(tokenizer.model_bytes)


def _from_sentencepiece(model_bytes: bytes) -> tokenizers.Tokenizer:
    """The same tokenizer in the other library."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model_bytes)
    trained, rules, pieces = proto.trainer_spec, proto.normalizer_spec, proto.pieces
    fallback = bool(trained.byte_fallback)
    if trained.model_type == _UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in pieces]
        unk_id = next(i for i, piece in enumerate(pieces) if piece.type == _UNKNOWN)
        model: Any = models.Unigram(scores, unk_id, fallback)
    elif trained.model_type == _BPE:
        vocab = {piece.piece: index for index, piece in enumerate(pieces)}
        unk = next(piece.piece for piece in pieces if piece.type == _UNKNOWN)
        merges = _merges(pieces)
        model = models.BPE(vocab, merges, unk_token=unk, fuse_unk=True, byte_fallback=fallback)
    else:
        raise TokenizerError(
            "tokenizer",
            got=f"a SentencePiece model of type {trained.model_type}",
            rule="must be a unigram or BPE model to be exported",
            remedy="Export with --tokenizer and a tokenizer.json of the same ids.",
        )
    library = tokenizers.Tokenizer(model)
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    library.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    fixed = [piece.piece for piece in pieces if piece.type == _USER_DEFINED]
    if fixed:
        either = "|".join(re.escape(piece) for piece in sorted(fixed, key=len, reverse=True))
        library.pre_tokenizer = pre_tokenizers.Split(Regex(either), "isolated")
    shown: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence(
        [*shown, decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix else shown
    )
    specials = [piece.piece for piece in pieces if piece.type in (_UNKNOWN, _CONTROL)]
    library.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in specials])
    return library


def _merges(pieces: Any) -> list[tuple[str, str]]:
    """SentencePiece merges the two neighbours whose union has the best score; the library wants a list."""
    rank = {piece.piece: (-piece.score, i) for i, piece in enumerate(pieces) if piece.type == _NORMAL}
    splits = (
        (place, piece[:cut], piece[cut:])
        for piece, place in rank.items()
        for cut in range(1, len(piece))
        if piece[:cut] in rank and piece[cut:] in rank
    )
    return [(left, right) for _, left, right in sorted(splits)]
